import os

import pytest

from serving.gateway.app import create_app
from serving.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("RINGO_PORT", "65535"),
        *(("RINGO_MODEL_SERVER", address) for address in ("[::1]:8500", "[fe80::1%eth0]:8500")),
        *(("RINGO_MODEL_SERVER", uri) for uri in ("ipv4:127.0.0.1:1,127.0.0.2:2", "dns:///model-server:8500")),
    ],
)
def test_variable_sets_its_setting(variable, text):
    setting = variable.removeprefix("RINGO_").lower()
    assert str(getattr(Settings.from_environment({variable: text}), setting)) == text


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
    "RINGO_PATH_PREFIX": ["/", "ringo", "/ringo/", "/..", "/a/./b", "/a//b", "/\u308a", "/a%20b", "/name/a", "/42.png"],
    "RINGO_LOG_FORMAT": ["", "JSON"],
    "RINGO_MODEL_NAME": [" ", "a\nb", "\x1b[2J", "é" * 128],
    "RINGO_MODEL_BASE_PATH": [""],
}
REFUSED = [
    *((variable, text, f"{text!r}; allowed is ") for variable, texts in INVALID.items() for text in texts),
    ("RINGO_TLS_CERTIFICATE", "a.pem", "'a.pem'; allowed is a path only together with RINGO_TLS_KEY."),
    ("RINGO_TLS_KEY", "a.pem", "'a.pem'; allowed is a path only together with RINGO_TLS_CERTIFICATE."),
    ("RINGO_TLS_CLIENT_CA", "a.pem", "'a.pem'; allowed is a path only together with RINGO_TLS_CERTIFICATE."),
    ("RINGO_TOKEN", PRIVATE_KEY, "not shown; allowed is at least 16 "),
    ("RINGO_TLS_KEY", PRIVATE_KEY, "not shown; allowed is the path of a PEM file."),
    *((f"RINGO_{name}", PRIVATE_KEY, "no setting; allowed is only RINGO_HOST, RINGO_") for name in ("TOKENS", "TOKNE")),
]


@pytest.mark.parametrize(("variable", "text", "fault"), REFUSED)
def test_error_names_the_variable_when_its_value_is_invalid(variable, text, fault):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: text})
    assert str(caught.value).startswith(f"{variable} is {fault}")


def test_path_prefix_is_refused_when_it_is_a_resource():
    for rule in create_app(Settings()).url_map.iter_rules():
        with pytest.raises(SettingsError):
            Settings.from_environment({"RINGO_PATH_PREFIX": rule.rule})
