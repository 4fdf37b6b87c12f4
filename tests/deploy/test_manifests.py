"""k8s/ and compose.yaml agree with the code; `make policy` checks security rules with checkov."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import prometheus_client
import pytest
import yaml
from kubernetes_validate import utils
from werkzeug.exceptions import default_exceptions

from serving.batch.calls import ANSWERS, METHODS, SERVICE, UNKNOWN
from serving.batch.server import STOP_GRACE_S
from serving.gateway.app import create_app
from serving.gateway.server import DRAIN_MARGIN_S
from serving.paint.command import Shard, parse
from serving.run import ALLOCATOR, model_server_command
from serving.settings import PREFIX, Settings
from serving.telemetry import metrics, request_log
from tests.conftest import ROOT
from training.__main__ import build_parser

OVERLAYS = ("overlays/local", "overlays/gpu", "overlays/production")
CANARY = "overlays/canary"  # in a namespace of its own
JOBS = ("jobs/train", "jobs/paint", "jobs/paint-tls", "jobs/roll-back", "jobs/load")
ALL = (*OVERLAYS, CANARY, *JOBS)
NEWEST = list(dict.fromkeys(map(utils.major_minor, utils.all_versions())))[-3:]
# Of other projects: no schema of theirs is in kubernetes-validate.
FOREIGN_GROUPS = ("gateway.networking.k8s.io", "monitoring.coreos.com")
RENDER_LIMIT_S = 60

Manifest = dict[str, Any]
KUSTOMIZE = next(
    (command for program, command in (("kubectl", ("kubectl", "kustomize")), ("kustomize", ("kustomize", "build")))
     if shutil.which(program)),
    None,
)  # fmt: skip
SETTINGS = Settings()


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Manifest]]:
    """Return the manifests of each of ALL."""
    if KUSTOMIZE is None:
        pytest.skip("neither kubectl nor kustomize is on the PATH")

    return render_all(ROOT / "k8s")


def render_all(folder: Path, names: Sequence[str] = ALL) -> dict[str, list[Manifest]]:
    """Return the manifests of each of `names`, which are kustomizations in `folder`."""

    def render(name: str) -> list[Manifest]:
        command = [*KUSTOMIZE, str(folder / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=RENDER_LIMIT_S, check=True)
        assert not done.stderr  # what is deprecated
        return list(yaml.safe_load_all(done.stdout))

    with ThreadPoolExecutor() as threads:
        return dict(zip(names, threads.map(render, names), strict=True))


@pytest.fixture(params=ALL)
def manifests(rendered, request) -> list[Manifest]:
    return rendered[request.param]


@pytest.fixture(params=OVERLAYS)
def overlay(rendered, request) -> list[Manifest]:
    return rendered[request.param]


@pytest.fixture
def production(rendered) -> list[Manifest]:
    return rendered["overlays/production"]


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


@pytest.mark.parametrize("version", NEWEST)
def test_every_manifest_is_valid(manifests, version):
    for manifest in manifests:
        if manifest["apiVersion"].split("/")[0] not in FOREIGN_GROUPS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_seeding_hides_no_model_of_the_image(overlay):
    (seed,) = pods(overlay)["model-server"]["spec"]["initContainers"]
    (mount,) = seed["volumeMounts"]
    assert seed["args"] == [mount["mountPath"]]
    in_image = re.search(r"^COPY models/apple/ (\S+)", (ROOT / "Dockerfile.serve").read_text(), re.MULTILINE)[1]
    assert not in_image.startswith(f"{mount['mountPath']}/")


def cpu(amount: str) -> float:
    """Return the cores of a quantity such as 500m or 2."""
    return float(amount.removesuffix("m")) / 1000 if amount.endswith("m") else float(amount)


KIND_CPU = 0.95  # what kind's own pods request of its node


@pytest.mark.parametrize("job", ["jobs/train", "jobs/paint", "jobs/roll-back", "jobs/load"])
def test_each_job_fits_on_a_node_of_two_cores_beside_the_local_overlay(rendered, job):
    def requested(name: str) -> float:
        total = 0.0
        for found in of_kind(rendered[name], "Deployment", "Job").values():
            spec = found["spec"]["template"]["spec"]
            first, then = (
                [cpu(c["resources"]["requests"]["cpu"]) for c in spec.get(key, [])]
                for key in ("initContainers", "containers")
            )
            total += max([sum(then), *first]) * found["spec"].get("parallelism", found["spec"].get("replicas", 1))
        return total

    assert KIND_CPU + requested("overlays/local") + requested(job) <= 2


def commands_of(document: str) -> str:
    """Return the text of the shell blocks in a file of docs/."""
    return "\n".join(re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / document).read_text(), re.DOTALL | re.MULTILINE))


def test_a_registry_named_once_by_the_documented_command_holds_everywhere(rendered, tmp_path):
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    (command,) = re.findall(r"^sed -i .*newName.*$", commands_of("operations.md"), re.MULTILINE)
    script = f"export REGISTRY=registry.example/apples\n{command}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=RENDER_LIMIT_S)
    for name, manifests in render_all(tmp_path / "k8s").items():
        images = {found["image"] for found in containers(manifests).values() if "ringo-" in found["image"]}
        assert images, name
        assert all(image.startswith("registry.example/apples/ringo-") for image in images), name


def test_documented_kustomizations_exist():
    text = commands_of("operations.md") + (ROOT / "README.md").read_text()
    for folder in set(re.findall(r"k8s/(?:overlays|jobs)/[a-z-]+", text)):
        assert (ROOT / folder / "kustomization.yaml").exists(), folder


def test_probes_ask_for_routes_and_services_of_the_code(overlay):
    routes = {rule.rule for rule in create_app(SETTINGS).url_map.iter_rules()}
    gateway, batch = (containers(overlay)[name] for name in ("gateway", "batch"))
    assert {gateway[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} <= routes
    assert batch["readinessProbe"].get("grpc", {"service": SERVICE})["service"] == SERVICE  # production has TLS


def test_model_server_is_ready_when_the_model_of_the_settings_is(overlay):
    (data,) = [found["data"] for name, found in of_kind(overlay, "ConfigMap").items() if name.startswith("settings-")]
    path = containers(overlay)["model-server"]["readinessProbe"]["httpGet"]["path"]
    assert path == f"/v1/models/{data['RINGO_MODEL_NAME']}/metadata"


def test_settings_of_config_map_and_compose_are_valid(overlay):
    for name, found in of_kind(overlay, "ConfigMap").items():
        if name.startswith("settings-"):
            Settings.from_environment(found["data"])
    for name in ("gateway", "batch"):
        Settings.from_environment(compose()["services"][name]["environment"])


def test_every_variable_of_ours_is_a_setting(manifests):
    known = {PREFIX + field.name.upper() for field in fields(Settings)}
    given = {variable["name"] for container in containers(manifests).values() for variable in container.get("env", [])}
    assert {name for name in given if name.startswith(PREFIX)} <= known


def test_ports_are_those_of_the_settings(overlay):
    found = {
        (name, port["name"]): port["containerPort"]
        for name, container in containers(overlay).items()
        for port in container.get("ports", [])
    }
    assert found == {
        ("gateway", "http"): SETTINGS.port,
        ("gateway", "metrics"): SETTINGS.metrics_port,
        ("batch", "grpc"): SETTINGS.batch_port,
        ("batch", "metrics"): SETTINGS.batch_metrics_port,
        ("model-server", "grpc"): SETTINGS.model_server_address[1],
        ("model-server", "rest"): 8501,
    }


def test_pods_have_the_time_they_take_to_drain(overlay):
    drain_s = {
        "gateway": SETTINGS.predict_timeout_s + DRAIN_MARGIN_S,
        "batch": SETTINGS.batch_drain_s + 2 * STOP_GRACE_S,
        "model-server": 0,
    }
    for name, pod in pods(overlay).items():
        if name in drain_s:
            pre_stop_s = containers(overlay)[name]["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert pre_stop_s + drain_s[name] < pod["spec"]["terminationGracePeriodSeconds"]


def test_model_server_has_the_flags_that_make_run_gives_it(overlay, tmp_path, monkeypatch):
    program = tmp_path / "tensorflow_model_server"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    needed = {flag for flag in model_server_command(SETTINGS)[1:] if "model_name" not in flag and "path" not in flag}
    assert needed <= set(containers(overlay)["model-server"]["args"])
    assert needed <= set(compose()["services"]["model-server"]["command"])


def test_training_job_is_a_command_of_training(rendered):
    for name in ("jobs/train", "overlays/gpu"):
        for step in ("fit", "export"):
            arguments = build_parser().parse_args(containers(rendered[name])[step]["args"])
            assert arguments.command == step


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
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule,) = policies["model-server"]["spec"]["ingress"]
    (peer,) = rule["from"]
    (term,) = peer["podSelector"]["matchExpressions"]
    assert term == {"key": "app.kubernetes.io/name", "operator": "In", "values": ["gateway", "batch"]}


def compose() -> Manifest:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_images_have_the_same_names_in_compose_and_the_cluster(rendered):
    ours = {
        container["image"] for name in ("overlays/local", *JOBS) for container in containers(rendered[name]).values()
    }
    assert ours == {service["image"] for name, service in compose()["services"].items() if name != "nginx"}


def test_images_have_the_versions_of_pyproject_and_the_lock_file(manifests):
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    locked = re.search(r"^tensorflow==(\S+)", (ROOT / "requirements" / "train.txt").read_text(), re.MULTILINE)[1]
    for container in containers(manifests).values():
        name, _, tag = container["image"].partition(":")
        assert tag.removesuffix("-gpu") == (locked if name == "tensorflow/serving" else ours)


def our_metrics() -> dict[str, set[str]]:
    """Return the labels of each series that both doors can tell of, by its name."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    found = {}
    for metric in vars(metrics).values():
        if isinstance(metric, prometheus_client.Counter | prometheus_client.Gauge | prometheus_client.Histogram):
            (family,) = metric.collect()
            for suffix in suffixes[family.type]:
                found[family.name + suffix] = {*metric._labelnames, *({"le"} if suffix == "_bucket" else ())}
    return found


def label_values() -> dict[str, set[str]]:
    """Return the values that each of our labels may have, where they are ours to choose."""
    endpoints = {rule.endpoint.removeprefix("/") for rule in create_app(SETTINGS).url_map.iter_rules()}
    refusals = {error.name.lower().replace(" ", "_") for error in (error() for error in default_exceptions.values())}
    return {
        "outcome": {answer.reason.lower() for answer in ANSWERS.values()}
        | {request_log.ANSWERED, request_log.NOT_MODIFIED, request_log.FAILED}
        | refusals,
        "resource": {*endpoints, *METHODS, UNKNOWN},
        "stage": set(get_args(request_log.Stage)),
        "source": {"cache", "model"},
        "signature": {"generate", "serving_default", "sample", "golden"},
    }


FROM_PROMETHEUS = {"pod", "namespace", "container", "deployment"}  # labels that every target gets, and their cluster


def expressions(manifests: list[Manifest]) -> list[str]:
    """Return the PromQL of alerts and dashboard."""
    (rules,) = of_kind(manifests, "PrometheusRule").values()
    board = json.loads(of_kind(manifests, "ConfigMap")["dashboard"]["data"]["ringo.json"])
    return [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]] + [
        target["expr"] for panel in board["panels"] for target in panel["targets"]
    ]


def test_alerts_and_dashboard_ask_for_metrics_and_labels_that_there_are(production):
    known, values = our_metrics(), label_values()
    for expression in expressions(production):
        labels = set(FROM_PROMETHEUS)
        for name, matchers in re.findall(r"\b(ringo_\w+)(?:\{(.*?)\})?", expression):
            labels |= known[name]
            for label, equals, text in re.findall(r"(\w+)\s*(=~|!~|!=|=)\s*\"(.*?)\"", matchers):
                assert label in known[name] | FROM_PROMETHEUS, expression
                wanted = set(text.split("|") if "~" in equals else [text]) - {""}
                assert wanted <= values.get(label, wanted), expression
        grouped = {label for found in re.findall(r"by \((.*?)\)", expression) for label in found.split(", ")}
        assert "ringo_" not in expression or grouped <= labels, expression


def test_failing_is_every_trouble_but_overload(production):
    (rules,) = of_kind(production, "PrometheusRule").values()
    (failing,) = [rule for rule in rules["spec"]["groups"][0]["rules"] if rule["alert"] == "RingoFailsRequests"]
    named = re.search(r'outcome=~"(.*?)"', failing["expr"])[1].split("|")
    assert set(named) == request_log.TROUBLE - {"overloaded"}


def test_operations_page_explains_every_metric_and_alert(production):
    page = (ROOT / "docs" / "operations.md").read_text()
    (rules,) = of_kind(production, "PrometheusRule").values()
    alerts = {rule["alert"] for group in rules["spec"]["groups"] for rule in group["rules"]}
    metric_names = {re.sub("_(bucket|sum|count)$", "", name) for name in our_metrics()}
    assert set(re.findall(r"\| `(ringo_\w+|Ringo\w+)`", page)) >= metric_names
    assert {alert for alert in alerts if f"`{alert}`" not in page} == set()


def test_compose_takes_no_rights_and_leaves_no_root():
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] == "10001:10001", name


def test_nobody_outside_reaches_the_model_server():
    """TensorFlow Serving authenticates no client, and accepts a new configuration from every client."""
    published = {name for name, service in compose()["services"].items() if "ports" in service}
    assert published == {"nginx", "batch"}
    base = [yaml.safe_load(path.read_text()) for path in (ROOT / "k8s" / "base").rglob("service.yaml")]
    assert {service["spec"].get("type", "ClusterIP") for service in base} == {"ClusterIP"}
    assert not any("rest_api_port" in flag for flag in model_server_command(SETTINGS))
    assert not any("rest_api_port" in flag for flag in compose()["services"]["model-server"]["command"])


def test_dockerfile_sets_the_allocator_as_make_run_does():
    text = (ROOT / "Dockerfile.serve").read_text()
    assert all(f"{name}={value}" in text for name, value in ALLOCATOR.items())


def test_dockerfiles_name_ports_of_the_settings():
    exposed = re.search("^EXPOSE (.*)$", (ROOT / "Dockerfile.serve").read_text(), re.MULTILINE)[1]
    ports = (SETTINGS.port, SETTINGS.batch_port, SETTINGS.metrics_port, SETTINGS.batch_metrics_port)
    assert exposed.split() == [str(port) for port in ports]
