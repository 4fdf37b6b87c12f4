"""The overlay `local`, run by podman without a cluster."""

import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import BUNDLED, ROOT, wait_until
from tests.deploy.test_containers import ENGINE, MODEL, TRAIN, engine
from tests.deploy.test_manifests import BUILD, render
from tests.gateway_process import Gateway, free_port, status_of

READY_LIMIT_S = 300  # TensorFlow's first import from a cold disk is slow
NETWORK = VOLUME = "ringo-play"
STAND_IN = "localhost/ringo-model-server:test"

pytestmark = [
    pytest.mark.skipif(
        not (ENGINE and ENGINE.endswith("podman")), reason="no podman; `make images ENGINE=podman` runs these"
    ),
    pytest.mark.skipif(BUILD is None, reason="neither kubectl nor kustomize is on the PATH"),
    pytest.mark.timeout(2 * READY_LIMIT_S),
]


def prepare_volume() -> None:
    """Create a volume as a cluster does: not empty, group-owned.

    Podman would fill an empty volume with the image's files at the mount path; Kubernetes does not.
    """
    engine("volume", "create", VOLUME)
    engine(
        *("run", "--rm", "--user", "0", "--network", "none", "--entrypoint", "/bin/sh"),
        *("-v", f"{VOLUME}:/volume:nocopy", MODEL, "-c", "mkdir /volume/lost+found && chown 10001:10001 /volume"),
    )


def play(manifests: list[dict], name: str, folder: Path, host_port: int | None = None) -> None:
    """Run the Deployment `name`, reachable by that name as by its Service."""
    configs = [manifest for manifest in manifests if manifest["kind"] == "ConfigMap"]
    (deployment,) = [m for m in manifests if m["kind"] == "Deployment" and m["metadata"]["name"] == name]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    if container["image"].startswith("tensorflow/serving"):
        container["image"] = STAND_IN
    expand_variables(container, configs)
    # Podman 4.3 may remove an init container of the default type, "once", before it has ended, and fail.
    deployment["metadata"].setdefault("annotations", {})["io.podman.annotations.init.container.type"] = "always"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):  # podman knows no gRPC probe
        del container[probe]
    if host_port is not None:
        (port,) = [port for port in container["ports"] if port["name"] == "http"]
        port |= {"hostPort": host_port, "hostIP": "127.0.0.1"}
    for volume in pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            volume["persistentVolumeClaim"]["claimName"] = VOLUME
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump_all([*configs, deployment]))
    engine("kube", "play", "--network", f"{NETWORK}:alias={name}", file)


def expand_variables(container: dict, configs: list[dict]) -> None:
    """Replace $(NAME) in arguments as Kubernetes does; podman 4 does not."""
    data = {config["metadata"]["name"]: config["data"] for config in configs}
    values = {}
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {}).get("configMapKeyRef")
        values[variable["name"]] = data[source["name"]][source["key"]] if source else variable.get("value")
    container["args"] = [re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], text) for text in container["args"]]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A gateway that is ready; its process is a container's."""
    folder, port = tmp_path_factory.mktemp("play"), free_port()
    dockerfile = ROOT / "tests" / "deploy" / "Dockerfile.model-server"
    engine("build", "-q", "-f", dockerfile, "--build-arg", f"TRAIN={TRAIN}", "-t", STAND_IN, ROOT)
    manifests = render(ROOT / "k8s" / "overlays" / "local")
    try:
        engine("network", "create", NETWORK)
        prepare_volume()
        play(manifests, "model-server", folder)
        play(manifests, "gateway", folder, port)
        wait_until(lambda: status_of(port, "/readyz") == 200, "the gateway is ready", READY_LIMIT_S)
        yield Gateway(port, metrics_port=0, process=None, log=folder)
    finally:
        for file in folder.glob("*.yaml"):
            engine("kube", "down", file)
        with suppress(AssertionError):
            engine("volume", "rm", "-f", VOLUME)
            engine("network", "rm", "-f", NETWORK)


def test_rendered_manifests_serve_the_image_of_the_bundled_model(gateway):
    import tensorflow as tf

    assert json.loads(gateway.ask("/about").body)["version"] == int(BUNDLED.name)
    expected = tf.saved_model.load(str(BUNDLED)).signatures["generate"](seeds=tf.constant([42], tf.int64))["images"]
    assert np.array_equal(gateway.pixels("/generate?seed=42"), expected[0])
