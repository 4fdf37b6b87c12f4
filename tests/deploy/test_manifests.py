"""Manifests and Dockerfiles agree with the code; `make policy` checks security."""

import json
import re
import shutil
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

from serving import __version__
from serving.batch.calls import SERVICE
from serving.batch.server import STOP_GRACE_S
from serving.gateway.app import create_app
from serving.gateway.server import DRAIN_MARGIN_S
from serving.paint.command import Shard, parse
from serving.run import ALLOCATOR, model_server_command
from serving.settings import PREFIX, Settings
from serving.telemetry import metrics, request_log
from tests.conftest import LIMIT_S, ROOT
from training.__main__ import build_parser

OVERLAYS = ("overlays/local", "overlays/gpu", "overlays/production")
JOBS = ("jobs/train", "jobs/paint", "jobs/paint-tls", "jobs/roll-back", "jobs/load")
ALL = (*OVERLAYS, "overlays/canary", *JOBS, "jobs/train-gpu")  # the canary has a namespace of its own

Manifest = dict[str, Any]
BUILD = next((words for words in (["kubectl", "kustomize"], ["kustomize", "build"]) if shutil.which(words[0])), None)
SETTINGS = Settings()
COMPOSE: Manifest = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
TARGET_LABELS = {"pod", "namespace", "container", "deployment"}  # Prometheus adds them


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    if BUILD is None:
        pytest.skip("neither kubectl nor kustomize is on the PATH")
    return {name: render(ROOT / "k8s" / name) for name in ALL}


def render(folder: Path) -> list[Manifest]:
    done = subprocess.run([*BUILD, folder], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stderr == ""  # it names deprecated fields
    return list(yaml.safe_load_all(done.stdout))


def manifests_of_parameter(rendered, request) -> list[Manifest]:
    return rendered[request.param]


manifests = pytest.fixture(manifests_of_parameter, params=ALL)
overlay = pytest.fixture(manifests_of_parameter, params=OVERLAYS)


@pytest.fixture
def alerts(rendered) -> dict[str, Manifest]:
    (rules,) = of_kind(rendered["overlays/production"], "PrometheusRule").values()
    return {rule["alert"]: rule for group in rules["spec"]["groups"] for rule in group["rules"]}


def of_kind(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] in kinds}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the pod templates, by the name of their Deployment or Job."""
    return {name: found["spec"]["template"] for name, found in of_kind(manifests, "Deployment", "Job").items()}


def containers(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {
        container["name"]: container
        for pod in pods(manifests).values()
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    }


def test_volume_hides_no_model_of_the_image_when_it_is_seeded(overlay):
    (seed,) = pods(overlay)["model-server"]["spec"]["initContainers"]
    (mount,) = seed["volumeMounts"]
    assert seed["args"] == [mount["mountPath"]]
    in_image = re.search(r"^COPY .*models/apple/ (\S+)", (ROOT / "Dockerfile.serve").read_text(), re.MULTILINE)[1]
    assert not in_image.startswith(f"{mount['mountPath']}/")


def test_all_images_come_from_the_registry_when_the_documented_sed_has_run(tmp_path, rendered):
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    (command,) = re.findall(r"^sed -i .*newName.*$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    script = f"export REGISTRY=registry.example/apples\n{command}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=LIMIT_S)
    for name in ("overlays/local", "jobs/train", "jobs/train-gpu"):
        images = [found["image"] for found in containers(render(tmp_path / "k8s" / name)).values()]
        assert {image.rpartition("/")[0] for image in images if "ringo-" in image} == {"registry.example/apples"}


def test_probes_name_routes_and_services_of_the_code(overlay):
    routes = {rule.rule for rule in create_app(SETTINGS).url_map.iter_rules()}
    gateway, batch = (containers(overlay)[name] for name in ("gateway", "batch"))
    assert {gateway[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} <= routes
    assert batch["readinessProbe"].get("grpc", {"service": SERVICE})["service"] == SERVICE  # production has TLS


def test_settings_are_valid_and_name_the_model_of_the_probe(overlay):
    (data,) = [found["data"] for name, found in of_kind(overlay, "ConfigMap").items() if name.startswith("settings-")]
    name = Settings.from_environment(data).model_name
    assert containers(overlay)["model-server"]["readinessProbe"]["httpGet"]["path"] == f"/v1/models/{name}/metadata"
    for name in ("gateway", "batch"):
        Settings.from_environment(COMPOSE[name]["environment"])


def test_every_ringo_variable_is_a_setting(manifests):
    known = {PREFIX + field.name.upper() for field in fields(Settings)}
    names = {variable["name"] for container in containers(manifests).values() for variable in container.get("env", [])}
    assert {name for name in names if name.startswith(PREFIX)} <= known


def test_container_ports_are_those_of_the_settings(overlay):
    with_ports = {name: found["ports"] for name, found in containers(overlay).items() if "ports" in found}
    assert {name: {port["name"]: port["containerPort"] for port in ports} for name, ports in with_ports.items()} == {
        "gateway": {"http": SETTINGS.port, "metrics": SETTINGS.metrics_port},
        "batch": {"grpc": SETTINGS.batch_port, "metrics": SETTINGS.batch_metrics_port},
        "model-server": {"grpc": SETTINGS.model_server_address[1], "rest": 8501},
    }


def test_grace_periods_cover_the_drain_time(overlay):
    batch_s = SETTINGS.batch_drain_s + 2 * STOP_GRACE_S
    drain_s = {"gateway": SETTINGS.predict_timeout_s + DRAIN_MARGIN_S, "batch": batch_s, "model-server": 0}
    for name, pod in pods(overlay).items():
        pre_stop_s = containers(overlay)[name]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pre_stop_s + drain_s[name] < pod["spec"]["terminationGracePeriodSeconds"]


def test_model_server_has_the_flags_that_make_run_gives_it(overlay, tmp_path, monkeypatch):
    (tmp_path / "tensorflow_model_server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    needed = {flag for flag in model_server_command(SETTINGS)[1:] if "model_name" not in flag and "path" not in flag}
    assert needed <= set(containers(overlay)["model-server"]["args"])
    assert needed <= set(COMPOSE["model-server"]["command"])


def test_training_job_is_a_command_of_training(rendered):
    for name in ("jobs/train", "jobs/train-gpu"):
        for step in ("fit", "export"):
            assert build_parser().parse_args(containers(rendered[name])[step]["args"]).command == step


def test_overlay_starts_no_job(overlay):
    assert not of_kind(overlay, "Job")  # a later deployment would start it again, or fail to change its image


@pytest.mark.parametrize("name", ["jobs/paint", "jobs/paint-tls"])
def test_paint_job_has_a_shard_for_each_completion(rendered, name):
    job = of_kind(rendered[name], "Job")["paint"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    shards = []
    for index in range(job["completions"]):
        variables["JOB_COMPLETION_INDEX"] = str(index)
        _, *arguments = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], arg) for arg in container["args"]]
        shards.append(parse(arguments).shard)
    assert shards == [Shard(index, 4) for index in range(4)]


def test_network_policy_admits_gateway_and_batch_only_to_model_server(rendered):
    policies = of_kind(rendered["overlays/local"], "NetworkPolicy")
    denied = policies["default-deny"]["spec"] | {"podSelector": {}}
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ((peer,),) = [rule["from"] for rule in policies["model-server"]["spec"]["ingress"]]
    expected = {"key": "app.kubernetes.io/name", "operator": "In", "values": ["gateway", "batch"]}
    assert peer["podSelector"]["matchExpressions"] == [expected]


def test_default_policy_selects_every_pod_of_ringo(rendered, manifests):
    selector = of_kind(rendered["overlays/local"], "NetworkPolicy")["default-deny"]["spec"]["podSelector"]
    for pod in pods(manifests).values():
        assert selector["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert not pod["metadata"]["labels"].keys() & {term["key"] for term in selector["matchExpressions"]}


def test_images_have_the_same_names_in_compose_and_the_cluster(rendered):
    ours = {found["image"] for name in ("overlays/local", *JOBS) for found in containers(rendered[name]).values()}
    assert ours == {service["image"] for name, service in COMPOSE.items() if name != "nginx"}


def test_images_have_the_versions_of_pyproject_and_the_lock_file(manifests):
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ours == __version__
    locked = re.search(r"^tensorflow==(\S+)", (ROOT / "requirements" / "train.txt").read_text(), re.MULTILINE)[1]
    for container in containers(manifests).values():
        name, _, tag = container["image"].partition(":")
        assert tag.removesuffix("-gpu") == (locked if name == "tensorflow/serving" else ours)


def our_metrics() -> dict[str, set[str]]:
    """Return the labels of both servers' time series, by name."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, prometheus_client.Counter | prometheus_client.Gauge | prometheus_client.Histogram):
            (family,) = metric.collect()
            for suffix in suffixes[family.type]:
                found[family.name + suffix] = {*metric._labelnames, *({"le"} if suffix == "_bucket" else ())}
    return found


def test_alerts_and_dashboard_name_existing_metrics_and_labels(rendered, alerts):
    known = our_metrics()
    board = json.loads(of_kind(rendered["overlays/production"], "ConfigMap")["dashboard"]["data"]["ringo.json"])
    for shown in [*alerts.values()] + [target for panel in board["panels"] for target in panel["targets"]]:
        expression, labels = shown["expr"], set(TARGET_LABELS)
        for name, matchers in re.findall(r"\b(ringo_\w+)(?:\{(.*?)\})?", expression):
            labels |= known[name]
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[name] | TARGET_LABELS, expression
        grouped = {label for found in re.findall(r"by \((.*?)\)", expression) for label in found.split(", ")}
        assert "ringo_" not in expression or grouped <= labels, expression


def test_alert_on_failures_covers_every_trouble_but_overload(alerts):
    named = re.search(r'outcome=~"(.*?)"', alerts["RingoFailsRequests"]["expr"])[1].split("|")
    assert set(named) == request_log.TROUBLE - {"overloaded"}


def test_alert_fires_when_the_first_attempt_to_load_a_version_fails(alerts, tmp_path):
    promtool = shutil.which("promtool") or pytest.skip("promtool, a part of Prometheus, is not on the PATH")
    failures = ':tensorflow:cc:saved_model:load_attempt_count{namespace="ringo", status="fail"}'
    query = {"expr": f"absent({alerts['RingoModelNotLoaded']['expr']})", "eval_time": "12m"}  # expected: nothing
    test = {"interval": "1m", "input_series": [{"series": failures, "values": "_x10 1x9"}], "promql_expr_test": [query]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": [test]}))
    subprocess.run([promtool, "test", "rules", tmp_path / "test.yaml"], check=True, timeout=LIMIT_S)


def test_operations_page_explains_every_metric_and_alert(alerts):
    page = (ROOT / "docs" / "operations.md").read_text()
    metric_names = {re.sub("_(bucket|sum|count)$", "", name) for name in our_metrics()}
    assert set(re.findall(r"\| `(ringo_\w+|Ringo\w+)`", page)) >= metric_names
    assert [alert for alert in alerts if f"`{alert}`" not in page] == []
    assert {rule["annotations"]["runbook_url"] for rule in alerts.values()} == {"docs/operations.md#metrics-and-alerts"}
    assert "\n## Metrics and alerts\n" in page


def test_compose_gives_no_container_root_rights():
    for name, service in COMPOSE.items():
        assert (service["read_only"], service["cap_drop"], service["user"]) == (True, ["ALL"], "10001:10001"), name


def test_compose_leaves_the_owner_of_the_volume_to_seed_model():
    (mount,) = COMPOSE["model-server"]["volumes"]  # Docker would copy the owner of the image's own /models
    assert mount["volume"] == {"nocopy": True}


def test_no_port_of_the_model_server_is_published():
    """TensorFlow Serving accepts a new configuration from every client."""
    assert {name for name, service in COMPOSE.items() if "ports" in service} == {"nginx", "batch"}
    base = [yaml.safe_load(path.read_text()) for path in (ROOT / "k8s" / "base").rglob("service.yaml")]
    assert {service["spec"].get("type", "ClusterIP") for service in base} == {"ClusterIP"}
    flags = model_server_command(SETTINGS) + COMPOSE["model-server"]["command"]
    assert not any("rest_api_port" in flag for flag in flags)


def test_dockerfile_has_the_ports_and_the_allocator_of_the_code():
    text = (ROOT / "Dockerfile.serve").read_text()
    ports = (SETTINGS.port, SETTINGS.batch_port, SETTINGS.metrics_port, SETTINGS.batch_metrics_port)
    assert f"EXPOSE {' '.join(map(str, ports))}\n" in text
    assert all(f"{name}={value}" in text for name, value in ALLOCATOR.items())
