"""Commands that refuse to start: exit status 2 and one sentence."""

import pytest

from serving.runtime.ports import listen
from tests.gateway_process import free_port, run_serving

NOT_HERE = "allowed is a name or address of this machine: "
TAKEN_PORT = "allowed is a port that is free on 127.0.0.1: Address already"


def tls(path: str) -> dict[str, str]:
    return {"tls_certificate": path, "tls_key": path}


# command, settings (TAKEN: a port that is in use), beginning of the sentence
REFUSED = [
    ("gateway", {"port": "TAKEN"}, f"RINGO_PORT is 'TAKEN'; {TAKEN_PORT}"),
    ("run", {"port": "TAKEN"}, f"RINGO_PORT is 'TAKEN'; {TAKEN_PORT}"),
    ("run", {"model_server": "localhost:TAKEN"}, "RINGO_MODEL_SERVER is 'localhost:TAKEN'; allowed is a port that is "),
    ("batch", {"batch_port": "TAKEN"}, f"RINGO_BATCH_PORT is 'TAKEN'; {TAKEN_PORT}"),
    ("batch", {"batch_metrics_port": "TAKEN"}, f"RINGO_BATCH_METRICS_PORT is 'TAKEN'; {TAKEN_PORT}"),
    ("batch", {"batch_port": 19999, "batch_metrics_port": 19999}, "RINGO_BATCH_METRICS_PORT is '19999'; allowed is a "),
    ("gateway", {"host": "nosuchhost.invalid"}, f"RINGO_HOST is 'nosuchhost.invalid'; {NOT_HERE}"),
    ("gateway", {"host": "192.0.2.1"}, f"RINGO_HOST is '192.0.2.1'; {NOT_HERE}"),
    ("gateway", {"host": "x" * 64}, f"RINGO_HOST is '{'x' * 64}'; {NOT_HERE}"),
    *(
        (part, {"host": host}, f"RINGO_HOST is '{host}'; {NOT_HERE}Invalid argument")
        for part, host in (("gateway", "fe80::1"), ("run", "ff02::1"), ("batch", "ff02::1"))
    ),
    ("run", {"model_server": "[ff02::1]:8500"}, f"The host in RINGO_MODEL_SERVER is 'ff02::1'; {NOT_HERE}"),
    ("run", {"model_server": "dns:///x:8500"}, f"The host in RINGO_MODEL_SERVER is 'dns:///x'; {NOT_HERE}"),
    ("run", {"model_base_path": "/nowhere"}, "RINGO_MODEL_BASE_PATH is '/nowhere'; allowed is a folder with numbered "),
    ("gateway", tls("/no"), "RINGO_TLS_CERTIFICATE is '/no'; "),
    ("batch", tls(__file__), f"RINGO_TLS_CERTIFICATE is '{__file__}'; "),
    ("gateway", tls("/dev/zero"), "RINGO_TLS_CERTIFICATE is '/dev/zero'; allowed is a regular "),
    ("gateway", {"model_name": "\udcff"}, "RINGO_MODEL_NAME is '\\udcff'; allowed is the name of a model, of "),
]


@pytest.mark.parametrize(("part", "settings", "sentence"), REFUSED)
def test_command_does_not_start_when_a_setting_cannot_be_used(part, settings, sentence):
    with listen("127.0.0.1", 0, variable="", value="") as taken:
        port = str(taken.getsockname()[1])
        chosen = {name: str(value).replace("TAKEN", port) for name, value in settings.items()}
        ports = {"batch_port": free_port(), "batch_metrics_port": free_port()}
        done = run_serving(part, **ports | chosen)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(sentence.replace("TAKEN", port))
    assert "Unknown error" not in done.stderr
