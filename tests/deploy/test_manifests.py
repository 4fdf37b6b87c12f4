"""What k8s/ renders to: valid, allowed by our policy, and of one mind with the code and the other files."""

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

from serving.batch.server import STOP_GRACE_S
from serving.batch.servicer import ANSWERS, METHODS, SERVICE, UNKNOWN
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


def fits(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a LabelSelector selects what bears `labels`."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(term["key"]) in term["values"] for term in selector.get("matchExpressions", [])
    )


@pytest.mark.parametrize("version", NEWEST)
def test_every_manifest_is_valid(manifests, version):
    for manifest in manifests:
        if manifest["apiVersion"].split("/")[0] not in FOREIGN_GROUPS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_every_container_says_what_it_needs_and_may_use(manifests):
    for name, container in containers(manifests).items():
        for amounts in (container["resources"]["requests"], container["resources"]["limits"]):
            assert {"cpu", "memory"} <= set(amounts), name


def test_every_pod_is_restricted(manifests):
    for name, pod in pods(manifests).items():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"], name
        assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 10001, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
    for name, container in containers(manifests).items():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_no_pod_gets_a_token_of_the_cluster(manifests):
    accounts = of_kind(manifests, "ServiceAccount")
    for name, pod in pods(manifests).items():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["serviceAccountName"] == name
        assert accounts[name]["automountServiceAccountToken"] is False


def test_the_namespace_admits_restricted_pods_only(overlay):
    labels = of_kind(overlay, "Namespace")["ringo"]["metadata"]["labels"]
    assert {labels[f"pod-security.kubernetes.io/{mode}"] for mode in ("enforce", "warn", "audit")} == {"restricted"}


@pytest.mark.parametrize("name", ALL)
def test_everything_is_in_the_one_namespace(rendered, name):
    namespaces = {m["metadata"].get("namespace") for m in rendered[name] if m["kind"] != "Namespace"}
    assert namespaces == {"ringo-canary" if name == CANARY else "ringo"}


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


def test_probes_differ(overlay):
    for name, container in containers(overlay).items():
        if "livenessProbe" in container:
            startup, ready, alive = (container[f"{probe}Probe"] for probe in ("startup", "readiness", "liveness"))
            assert ready != alive, name
            assert startup["periodSeconds"] < ready["periodSeconds"] < alive["periodSeconds"], name
            assert ready["failureThreshold"] < alive["failureThreshold"], name


def test_probes_of_the_gateway_are_routes_of_it(overlay):
    app = create_app(SETTINGS)
    routes = {rule.rule for rule in app.url_map.iter_rules()}
    gateway = containers(overlay)["gateway"]
    assert {gateway[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} <= routes


def test_readiness_of_the_batch_server_asks_for_its_service(rendered):
    assert containers(rendered["overlays/local"])["batch"]["readinessProbe"]["grpc"]["service"] == SERVICE


def test_model_server_is_ready_when_the_model_of_the_settings_is(overlay):
    (data,) = [found["data"] for name, found in of_kind(overlay, "ConfigMap").items() if name.startswith("settings-")]
    path = containers(overlay)["model-server"]["readinessProbe"]["httpGet"]["path"]
    assert path == f"/v1/models/{data['RINGO_MODEL_NAME']}/metadata"


def test_settings_of_the_config_map_can_be_used(overlay):
    for name, found in of_kind(overlay, "ConfigMap").items():
        if name.startswith("settings-"):
            Settings.from_environment(found["data"])


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


def test_every_service_budget_and_scaler_finds_its_pods(overlay):
    deployments = of_kind(overlay, "Deployment")
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay).items()}
    for name, service in of_kind(overlay, "Service").items():
        assert fits({"matchLabels": service["spec"]["selector"]}, labels[name])
        ports = {port["name"] for port in containers(overlay)[name]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for name, budget in of_kind(overlay, "PodDisruptionBudget").items():
        assert fits(budget["spec"]["selector"], labels[name])
    for name, scaler in of_kind(overlay, "HorizontalPodAutoscaler").items():
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
        assert name in deployments
        assert "replicas" not in deployments[name]["spec"]  # or each apply would undo the scaler's work


def test_rollouts_take_no_pod_away_before_another_is_ready(overlay):
    for found in of_kind(overlay, "Deployment").values():
        assert found["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


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
def test_painting_job_has_a_shard_for_each_completion(rendered, name):
    job = of_kind(rendered[name], "Job")["paint"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    shards = []
    for index in range(job["completions"]):
        variables["JOB_COMPLETION_INDEX"] = str(index)
        name, *arguments = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], arg) for arg in container["args"]]
        shards.append(parse(arguments).shard)
        assert name == "paint"
    assert shards == [Shard(index, 4) for index in range(4)]


def secret_at(pod: Manifest, path: str) -> tuple[str, str]:
    """Return which Secret, and which key of it, `pod` has as the file at `path`."""
    (container,) = pod["spec"]["containers"]
    folder, _, key = path.rpartition("/")
    (volume,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == folder]
    (secret,) = [found["secret"] for found in pod["spec"]["volumes"] if found["name"] == volume]
    assert {"key": key, "path": key} in secret.get("items", [{"key": key, "path": key}])
    return secret["secretName"], key


def test_painting_job_trusts_the_certificate_of_batch_servers_that_have_tls(rendered):
    (sets,) = re.findall("^K8S_SETS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for overlay, *jobs in (one.split("+") for one in sets.split()):
        (job,) = [job for job in jobs if job.startswith("paint")]
        server, client = pods(rendered[f"overlays/{overlay}"])["batch"], pods(rendered[f"jobs/{job}"])["paint"]
        given = {variable["name"]: variable.get("value") for variable in server["spec"]["containers"][0]["env"]}
        certificate = given.get("RINGO_TLS_CERTIFICATE")
        trusted = [arg.removeprefix("--ca=") for arg in client["spec"]["containers"][0]["args"] if "--ca=" in arg]
        assert len(trusted) == (certificate is not None), (overlay, job)
        assert [secret_at(client, path) for path in trusted] == [secret_at(server, certificate) for _ in trusted]


def test_gpu_overlay_trains_and_serves_on_one_gpu_each(rendered):
    found = containers(rendered["overlays/gpu"])
    assert {n for n, c in found.items() if "nvidia.com/gpu" in c["resources"]["limits"]} == {"fit", "model-server"}
    assert found["model-server"]["image"].endswith("-gpu")


def flows(manifests: list[Manifest]) -> set[tuple[str, str, object]]:
    """Return who may call whom on which port, by what the policies of the one who is called say.

    A caller is a pod's name, the namespace that it is in, or "*".
    """
    found = set()
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy").values()]
    names = {name: pod["metadata"]["labels"] for name, pod in pods(manifests).items()}
    for called, labels in names.items():
        for policy in policies:
            if not fits(policy["podSelector"], labels):
                continue
            for rule in policy.get("ingress", []):
                for peer in rule.get("from", [None]):
                    if peer is None:
                        callers = {"*"}
                    elif "namespaceSelector" in peer:
                        callers = set(peer["namespaceSelector"]["matchLabels"].values())
                    else:
                        callers = {name for name, own in names.items() if fits(peer["podSelector"], own)}
                    found |= {(caller, called, port["port"]) for caller in callers for port in rule["ports"]}
    return found


def allowed_calls(manifests: list[Manifest]) -> set[tuple[str, str, object]]:
    """Return what `flows` does, by what the policies of the callers say; calls to the name service are left out."""
    names = {name: pod["metadata"]["labels"] for name, pod in pods(manifests).items()}
    return {
        (caller, called, port["port"])
        for policy in of_kind(manifests, "NetworkPolicy").values()
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "namespaceSelector" not in peer
        for caller, own in names.items()
        if fits(policy["spec"]["podSelector"], own)
        for called, labels in names.items()
        if fits(peer["podSelector"], labels)
        for port in rule["ports"]
    }


NEEDED = {("gateway", "model-server", 8500), ("batch", "model-server", 8500), ("paint", "batch", 9090)}


def test_pods_call_each_other_where_they_must_and_nowhere_else(rendered):
    together = rendered["overlays/local"] + rendered["jobs/paint"] + rendered["jobs/train"]
    assert flows(together) == NEEDED | {("*", "gateway", 8080), ("allowed", "batch", 9090)}
    assert allowed_calls(together) == NEEDED


def test_prometheus_may_ask_for_metrics_and_nothing_else(rendered):
    more = flows(rendered["overlays/production"]) - flows(rendered["overlays/local"])
    assert {(caller, port) for caller, _, port in more} == {("monitoring", "metrics"), ("monitoring", "rest")}


def test_whatever_no_policy_allows_is_denied(overlay):
    assert of_kind(overlay, "NetworkPolicy")["default-deny"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


def test_every_pod_that_calls_others_by_name_may_ask_the_name_service(rendered):
    selector = of_kind(rendered["overlays/local"], "NetworkPolicy")["name-service"]["spec"]["podSelector"]
    callers = {caller for caller, _, _ in NEEDED}
    assert set(selector["matchExpressions"][0]["values"]) == callers


def compose() -> Manifest:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_images_have_the_same_names_in_compose_and_the_cluster(rendered):
    ours = {
        container["image"] for name in ("overlays/local", *JOBS) for container in containers(rendered[name]).values()
    }
    assert ours == {service["image"] for name, service in compose()["services"].items() if name != "nginx"}


def test_images_bear_the_version_of_the_project(manifests):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for container in containers(manifests).values():
        name, _, tag = container["image"].partition(":")
        assert not name.startswith("ringo-") or tag.removesuffix("-gpu") == version


def test_tensorflow_serving_is_of_the_tensorflow_that_exports(manifests):
    locked = re.search(r"^tensorflow==(\S+)", (ROOT / "requirements" / "train.txt").read_text(), re.MULTILINE)
    for container in containers(manifests).values():
        name, _, tag = container["image"].partition(":")
        assert name != "tensorflow/serving" or tag.removesuffix("-gpu") == locked[1]


def test_a_changed_setting_rolls_the_pods(overlay):
    text = json.dumps([pod["spec"] for pod in pods(overlay).values()])
    names = [name for name in of_kind(overlay, "ConfigMap") if name != "dashboard"]
    assert names
    for name in names:
        assert re.search("-[a-z0-9]{10}$", name)
        assert f'"{name}"' in text


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


def expressions(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """Return what alerts and dashboard ask Prometheus for, each with the text that shows the answer."""
    (rules,) = of_kind(manifests, "PrometheusRule").values()
    board = json.loads(of_kind(manifests, "ConfigMap")["dashboard"]["data"]["ringo.json"])
    return [
        (rule["expr"], rule["annotations"]["summary"].replace("$labels.", ""))
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
    ] + [(target["expr"], target["legendFormat"]) for panel in board["panels"] for target in panel["targets"]]


def test_alerts_and_dashboard_ask_for_metrics_and_labels_that_there_are(production):
    known, values, asked = our_metrics(), label_values(), set()
    for expression, shown in expressions(production):
        labels = set()
        for name, matchers in re.findall(r"\b(ringo_\w+)(?:\{(.*?)\})?", expression):
            asked.add(name)
            assert name in known, expression
            labels |= known[name]
            for label, equals, text in re.findall(r"(\w+)\s*(=~|!~|!=|=)\s*\"(.*?)\"", matchers):
                assert label in known[name] | FROM_PROMETHEUS, expression
                wanted = set(text.split("|") if "~" in equals else [text]) - {""}
                assert wanted <= values.get(label, wanted), expression
        grouped = {label for found in re.findall(r"by \((.*?)\)", expression) for label in found.split(", ")}
        if labels:
            assert grouped <= labels | FROM_PROMETHEUS, expression
            assert ("_bucket" in expression) == ("histogram_quantile" in expression), expression
        for label in re.findall(r"\{\{ ?(\w+) ?\}\}", shown):
            assert label in grouped | {"deployment", "model_path"}, shown
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in known} == {
        re.sub("_(bucket|sum|count)$", "", name) for name in asked
    }  # and leave none out


def test_failing_is_every_trouble_but_overload(production):
    (rules,) = of_kind(production, "PrometheusRule").values()
    (failing,) = [rule for rule in rules["spec"]["groups"][0]["rules"] if rule["alert"] == "RingoFailsRequests"]
    named = re.search(r'outcome=~"(.*?)"', failing["expr"])[1].split("|")
    assert set(named) == request_log.TROUBLE - {"overloaded"}


def test_every_metric_is_explained_and_no_other():
    operations = (ROOT / "docs" / "operations.md").read_text()
    readme = (ROOT / "README.md").read_text()
    known = {re.sub("_(bucket|sum|count)$", "", name) for name in our_metrics()}
    assert set(re.findall(r"\| `(ringo_\w+)`", operations)) == known
    assert set(re.findall(r"`(ringo_\w+)`", operations + readme)) <= known


def test_every_alert_is_explained(production):
    operations = (ROOT / "docs" / "operations.md").read_text()
    (rules,) = of_kind(production, "PrometheusRule").values()
    for group in rules["spec"]["groups"]:
        for rule in group["rules"]:
            assert f"`{rule['alert']}`" in operations


def test_every_manifest_is_of_one_kind():
    for file in (ROOT / "k8s").rglob("*.yaml"):
        if not file.name.startswith("kustomization"):
            documents = list(yaml.safe_load_all(file.read_text()))
            assert len({document["kind"] for document in documents if isinstance(document, dict)}) <= 1


def test_compose_starts_each_part_when_what_it_needs_is_healthy():
    services = compose()["services"]
    for name in ("gateway", "batch"):
        assert services[name]["depends_on"] == {"model-server": {"condition": "service_healthy"}}
    assert services["model-server"]["depends_on"] == {"seed-model": {"condition": "service_completed_successfully"}}
    assert "gateway" in services["nginx"]["depends_on"]
    assert services["batch"]["ports"] == [f"{SETTINGS.batch_port}:{SETTINGS.batch_port}"]


def test_compose_settings_can_be_used():
    for name in ("gateway", "batch"):
        Settings.from_environment(compose()["services"][name]["environment"])


def test_compose_takes_no_rights_and_leaves_no_root():
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"] == "10001:10001", name


def test_nobody_outside_reaches_the_model_server():
    """TensorFlow Serving asks nobody who he is, and takes a new configuration from anybody."""
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


def test_dockerignore_lets_in_what_the_dockerfiles_copy():
    let_in = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = {
        source.rstrip("/")
        for name in ("Dockerfile.serve", "Dockerfile.train")
        for source in re.findall("^COPY (?!--from)(\\S+)", (ROOT / name).read_text(), re.MULTILINE)
    }
    for source in copied:
        assert any(Path(source).match(allowed) or source == allowed.split("/")[0] for allowed in let_in), source


def test_workflows_run_targets_of_make_and_nothing_else():
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflows = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    steps = [step for workflow in workflows for job in workflow["jobs"].values() for step in job["steps"]]
    words = [word for step in steps if "run" in step for word in step["run"].split() if "=" not in word]
    assert set(words) - {"make"} <= targets
    assert {"lint", "test", "policy", "audit", "sbom", "fuzz", "images", "cluster"} <= set(words)
