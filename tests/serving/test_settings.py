"""Settings that are invalid or cannot be used: exit status 2 and one sentence."""

import os
from tempfile import gettempdir

import pytest

from serving.gateway.app import create_app
from serving.runtime.ports import listen
from serving.settings import Settings, SettingsError
from tests.conftest import UNPRIVILEGED
from tests.gateway_process import free_port, run_serving, shell, tls


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("RINGO_PORT", "65535"),
        *(("RINGO_MODEL_SERVER", address) for address in ("[::1]:8500", "[fe80::1%eth0]:8500")),
        *(("RINGO_MODEL_SERVER", uri) for uri in ("ipv4:127.0.0.1:1,127.0.0.2:2", "dns:///model-server:8500")),
    ],
)
def test_variable_sets_its_setting(variable, text):
    assert str(getattr(Settings.from_environment({variable: text}), variable.removeprefix("RINGO_").lower())) == text


PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----\np\u00e4ssword"
INVALID = {
    "RINGO_HOST": ["", os.fsdecode(b"\xff")],
    "RINGO_PORT": ["0", "-1", "+5", "1.5", "1_0", " 5 ", "5\n", "x", "٣", "", "65536"],
    "RINGO_CACHE_MB": ["-1", "65537"],
    "RINGO_PREDICT_TIMEOUT_S": ["0", "-1", "nan", "inf", "10000", "1_0", " 5 ", "٣", "1.2.3", ".", "9" * 400, ""],
    "RINGO_MODEL_SERVER": [
        *("8500", ":8500", "localhost", "localhost:", "localhost:0", "", "http://localhost:8500"),
        *("grpc://localhost:8500", "::1:8500", "[::1]", "[1:2]:8500", "local host:8500", "localhost:8500 "),
        *("localhost:8500/", "localhost:99999", "a:1,b:2", "dns:127.0.0.1:1,127.0.0.1:2"),
        *("ipv4:localhost:8500", "ipv6:127.0.0.1:8500"),
    ],
    "RINGO_PATH_PREFIX": [
        *("ringo", "/ringo/", "/..", "/a/./b", "/a//b", "/\u308a", "/a%20b", "/name/a", "/42.png"),
        *(rule.rule for rule in create_app(Settings()).url_map.iter_rules()),  # resources
    ],
    "RINGO_LOG_FORMAT": ["", "JSON"],
    "RINGO_MODEL_NAME": [" ", "a\nb", "\x1b[2J", "é" * 128],
    "RINGO_MODEL_BASE_PATH": [""],
}
REFUSED = [
    *((variable, text, f"{text!r}; allowed is ") for variable, texts in INVALID.items() for text in texts),
    ("RINGO_TLS_CERTIFICATE", "a.pem", "set, but RINGO_TLS_KEY is not; set both."),
    ("RINGO_TLS_KEY", "a.pem", "set, but RINGO_TLS_CERTIFICATE is not; set both."),
    ("RINGO_TLS_CLIENT_CA", "a.pem", "set, but RINGO_TLS_CERTIFICATE is not; set both."),
    *(("RINGO_TOKEN", text, "not shown; allowed is at least 16 ") for text in (PRIVATE_KEY, "t" * 15)),
    ("RINGO_TLS_KEY", PRIVATE_KEY, "not shown; allowed is the path of a PEM file."),
    *((f"RINGO_{name}", PRIVATE_KEY, "no setting; allowed is only RINGO_HOST, RINGO_") for name in ("TOKENS", "TOKNE")),
]


@pytest.mark.parametrize(("variable", "text", "fault"), REFUSED)
def test_error_names_the_variable_when_its_value_is_invalid(variable, text, fault):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: text})
    assert str(caught.value).startswith(f"{variable} is {fault}")


NOT_HERE = "allowed is a name or address of this machine: "
TAKEN_PORT = "Port TAKEN is already in use on 127.0.0.1; set "
TOO_LARGE = "allowed is a writable folder with 4 MiB of room, which /dev/shm does not have: File too large."
# command, also after a script of the shell; settings (TAKEN: a port that is in use); beginning of the sentence
REFUSED_STARTS = [
    *((part, {"port": "TAKEN"}, f"{TAKEN_PORT}RINGO_PORT to another.") for part in ("gateway", "run")),
    ("run", {"model_server": "localhost:TAKEN"}, "Port TAKEN is already in use on localhost; set RINGO_MODEL_"),
    ("batch", {"batch_port": "TAKEN"}, f"{TAKEN_PORT}RINGO_BATCH_PORT to another."),
    ("batch", {"batch_metrics_port": "TAKEN"}, f"{TAKEN_PORT}RINGO_BATCH_METRICS_PORT to another."),
    ("batch", {"batch_port": 19999, "batch_metrics_port": 19999}, "Port 19999 is already in use on 127.0.0.1; set "),
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
    ("run", {"model_base_path": 256 * "x"}, f"RINGO_MODEL_BASE_PATH is '{256 * 'x'}'; allowed is a folder with "),
    ("gateway", tls("/no"), "RINGO_TLS_CERTIFICATE is '/no'; "),
    ("batch", tls(__file__), f"RINGO_TLS_CERTIFICATE is '{__file__}'; "),
    ("gateway", {"tls_certificate": __file__, "tls_key": "/no"}, "RINGO_TLS_KEY is '/no'; allowed is a regular "),
    ("batch", tls("/proc/1/root/no"), "RINGO_TLS_CERTIFICATE is '/proc/1/root/no'; allowed is a regular "),
    ("gateway", tls("/dev/zero"), "RINGO_TLS_CERTIFICATE is '/dev/zero'; allowed is a regular "),
    ("gateway", {"model_name": "\udcff"}, "RINGO_MODEL_NAME is '\\udcff'; allowed is the name of a model, of "),
    ("ulimit -f 0 && gateway", {"workers": 2}, f"TMPDIR is '{gettempdir()}'; {TOO_LARGE}"),
    *(
        (f"ulimit -n 100 && {part}", {}, "ulimit -n is '100'; allowed is a limit of at least 128 open files.")
        for part in ("gateway", "batch", "model-server", "run", "verify x.png")
    ),
]


@pytest.mark.parametrize(("command", "settings", "sentence"), REFUSED_STARTS)
def test_command_does_not_start_when_a_setting_or_limit_cannot_be_used(command, settings, sentence):
    script, _, words = command.rpartition(" && ")
    with listen("127.0.0.1", 0, variable="") as taken:
        port = str(taken.getsockname()[1])
        chosen = {name: str(value).replace("TAKEN", port) for name, value in settings.items()}
        ports = {name: free_port() for name in ("port", "batch_port", "batch_metrics_port")}
        done = run_serving(*words.split(), wrapper=(*UNPRIVILEGED, *shell(script or ":")), **ports | chosen)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(sentence.replace("TAKEN", port))
    assert "Unknown error" not in done.stderr
