"""Commands that refuse to start, in one table: exit status 2 and one sentence on stderr that names the variable."""

import shutil

import pytest

from serving.runtime.ports import listen
from tests.conftest import ROOT
from tests.gateway_process import free_port, run_serving

NOT_HERE = "allowed is a name or address of this machine: "
# command, settings (TAKEN: a port that is in use), beginning of the sentence
REFUSED = [
    (
        "gateway",
        {"port": "TAKEN"},
        "RINGO_PORT is 'TAKEN'; allowed is a port that is free on 127.0.0.1: Address already",
    ),
    ("run", {"port": "TAKEN"}, "RINGO_PORT is 'TAKEN'; allowed is a port that is free on 127.0.0.1: Address already"),
    ("run", {"model_server": "localhost:TAKEN"}, "RINGO_MODEL_SERVER is 'localhost:TAKEN'; allowed is a port that is "),
    ("batch", {"batch_port": "TAKEN"}, "RINGO_BATCH_PORT is 'TAKEN'; allowed is a port that is free on 127.0.0.1: "),
    ("batch", {"batch_metrics_port": "TAKEN"}, "RINGO_BATCH_METRICS_PORT is 'TAKEN'; allowed is a port that is free "),
    *(
        ("gateway", {"host": host}, f"RINGO_HOST is '{host}'; {NOT_HERE}")
        for host in ("nosuchhost.invalid", " 127.0.0.1", "-1", "192.0.2.1", "x" * 64, "ä" * 64)
    ),
    ("batch", {"host": "192.0.2.1"}, f"RINGO_HOST is '192.0.2.1'; {NOT_HERE}"),
    ("run", {"model_server": "192.0.2.1:8500"}, f"The host in RINGO_MODEL_SERVER is '192.0.2.1'; {NOT_HERE}"),
    ("run", {"model_server": "dns:///x:8500"}, f"The host in RINGO_MODEL_SERVER is 'dns:///x'; {NOT_HERE}"),
    ("run", {"model_base_path": "/nowhere"}, "RINGO_MODEL_BASE_PATH is '/nowhere'; allowed is a folder with numbered "),
    *(
        (part, {"tls_certificate": "/no", "tls_key": "/no"}, "RINGO_TLS_CERTIFICATE is '")
        for part in ("gateway", "batch")
    ),
    ("gateway", {"port": "x"}, "RINGO_PORT is 'x'; allowed is a whole number from 1 to 65535."),
    ("gateway", {"model_name": "\udcff"}, "RINGO_MODEL_NAME is '\\udcff'; allowed is the name of a model, in UTF-8."),
]


@pytest.mark.parametrize(("part", "settings", "sentence"), REFUSED)
def test_command_does_not_start_when_a_setting_cannot_be_used(part, settings, sentence):
    with listen("127.0.0.1", 0, variable="", value="") as taken:
        port = str(taken.getsockname()[1])
        chosen = {name: value.replace("TAKEN", port) for name, value in settings.items()}
        ports = {"batch_port": free_port(), "batch_metrics_port": free_port()}
        done = run_serving(part, **ports | chosen)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(sentence.replace("TAKEN", port))
    assert "Unknown error" not in done.stderr


def test_command_says_how_to_generate_the_stubs_when_they_are_missing(tmp_path):
    shutil.copytree(ROOT / "serving", tmp_path / "serving", ignore=shutil.ignore_patterns("pb", "__pycache__"))
    done = run_serving("batch", cwd=tmp_path)
    sentence = "serving/pb is not there yet: `make stubs` generates it from proto/.\n"
    assert (done.returncode, done.stderr) == (2, sentence)
