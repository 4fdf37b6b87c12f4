import os
from pathlib import Path

import pytest

from serving.settings import READERS, Settings, SettingsError


def test_an_empty_environment_gives_the_defaults():
    assert Settings.from_environment({}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("RINGO_PORT", "65535", "port", 65535),
        ("RINGO_MODEL_SERVER", "[::1]:8500", "model_server", "[::1]:8500"),
        ("RINGO_MODEL_BASE_PATH", "/models/cat", "model_base_path", Path("/models/cat")),
        ("RINGO_PREDICT_TIMEOUT_S", "0.5", "predict_timeout_s", 0.5),
        ("RINGO_CACHE_MB", "0", "cache_mb", 0),
        ("RINGO_BATCH_METRICS_PORT", "9102", "batch_metrics_port", 9102),
        ("RINGO_TOKEN", "0123456789abcdef", "token", "0123456789abcdef"),
        ("RINGO_LOG_FORMAT", "json", "log_format", "json"),
    ],
)
def test_variable_sets_its_setting(variable, text, name, value):
    assert getattr(Settings.from_environment({variable: text}), name) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        *(
            (variable, text)
            for variable in ("RINGO_PORT", "RINGO_METRICS_PORT", "RINGO_WORKERS")
            for text in ("0", "-1", "1.5", "x", "٣", "")
        ),
        ("RINGO_PORT", "65536"),
        ("RINGO_MAX_IN_FLIGHT", "1000000"),
        *(("RINGO_CACHE_MB", text) for text in ("-1", "0.5", "16MB", "65537")),
        *(("RINGO_PREDICT_TIMEOUT_S", text) for text in ("0", "-1", "nan", "inf", "10000", "ten", "")),
        *(("RINGO_BATCH_DRAIN_S", text) for text in ("1_0", " 5 ", "5\n", "٣", "+5", "1.2.3", ".", "9" * 400)),
        *(("RINGO_WORKERS", text) for text in ("1_0", " 5 ", "5\n", "+5")),
        *(("RINGO_MODEL_SERVER", text) for text in ("8500", ":8500", "localhost", "localhost:", "localhost:0", "")),
        ("RINGO_HOST", ""),
        *(("RINGO_LOG_FORMAT", text) for text in ("", "JSON", "xml")),
        ("RINGO_MODEL_NAME", " "),
        ("RINGO_MODEL_BASE_PATH", ""),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_variable_and_what_is_allowed(variable, text):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: text})
    assert str(caught.value).startswith(f"{variable} is {text!r}; allowed is ")


@pytest.mark.parametrize("variable", [f"RINGO_{name.upper()}" for name in READERS])
def test_a_value_that_is_not_utf_8_is_refused_whatever_it_sets(variable):
    text = os.fsdecode(b"0123456789abcdef\xff:8500")
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: text})
    shown = "not shown" if variable == "RINGO_TOKEN" else "'0123456789abcdef\\udcff:8500'"
    assert str(caught.value).startswith(f"{variable} is {shown}; allowed is ")
    assert str(caught.value).endswith(", in UTF-8.")


@pytest.mark.parametrize(
    ("given", "half", "missing"),
    [
        (["RINGO_TLS_CERTIFICATE"], "RINGO_TLS_CERTIFICATE", "RINGO_TLS_KEY"),
        (["RINGO_TLS_KEY"], "RINGO_TLS_KEY", "RINGO_TLS_CERTIFICATE"),
        (["RINGO_TLS_CLIENT_CA"], "RINGO_TLS_CLIENT_CA", "RINGO_TLS_CERTIFICATE"),
        (["RINGO_TLS_CLIENT_CA", "RINGO_TLS_CERTIFICATE"], "RINGO_TLS_CLIENT_CA", "RINGO_TLS_KEY"),
    ],
)
def test_half_of_what_goes_together_is_named_with_what_is_missing(given, half, missing):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment(dict.fromkeys(given, "a.pem"))
    assert str(caught.value) == f"{half} is 'a.pem'; allowed is a path only together with {missing}."


@pytest.mark.parametrize(
    ("variable", "shown"), [("RINGO_TOKEN", "not shown"), ("RINGO_TOKENS", "no setting"), ("RINGO_TOKNE", "no setting")]
)
def test_a_token_that_cannot_be_used_is_not_shown(variable, shown):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: "p\u00e4ssword"})
    assert str(caught.value).startswith(f"{variable} is {shown}; allowed is ")


def test_an_unknown_variable_is_an_error_that_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"RINGO_PROT is no setting; allowed is only RINGO_HOST, RINGO_PORT, "):
        Settings.from_environment({"RINGO_PROT": "80"})
