"""What an operator may choose, read once from the environment."""

import argparse
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

PREFIX = "RINGO_"
T = TypeVar("T")

MAX_MODEL_CALLS = 64
LOG_FORMATS = ("text", "json")
MAX_TIMEOUT_S = 600.0  # ten minutes: whoever writes more has mistaken milliseconds for seconds


class SettingsError(Exception):
    """A setting can't be used; the text is one sentence with the variable, its value and what is allowed.

    Without a value there is no such setting: what stands there may be a secret under a mistyped name.
    """

    def __init__(self, variable: str, value: str | None, allowed: str) -> None:
        shown = "no setting" if value is None else "not shown" if "TOKEN" in variable else repr(value)
        super().__init__(f"{variable} is {shown}; allowed is {allowed}.")


@dataclass(frozen=True)
class Settings:
    """What both doors and the launcher go by. RINGO_PREDICT_TIMEOUT_S sets `predict_timeout_s`, and so on."""

    # This machine alone: opening to a network is a decision, which the containers take.
    host: str = "127.0.0.1"
    port: int = 8080

    # A gRPC target; 8500 is TensorFlow Serving's own default.
    model_server: str = "localhost:8500"
    model_name: str = "apple"

    # For the model server that `run` starts, and for the model cards that the gateway shows; it may lack the folder.
    model_base_path: Path = Path("models/apple")

    # One picture takes tens of milliseconds on two cores: 10 s outlast a queue of hundreds, and still end before the
    # 15 to 30 s at which proxies and people give up.
    predict_timeout_s: float = 10.0

    # A worker mostly waits for the model server: one is enough until encoding alone fills a core (5 ms a picture).
    workers: int = 1

    # Of each worker: how many requests may wait for the model at a time; who comes beyond is told to come back. The
    # last of 64 waits 2 s at 30 ms a picture.
    max_in_flight: int = 64

    # Of each worker: Predict calls at a time for single pictures, as many as the model server has cores; who asks
    # meanwhile goes along with the next.
    model_calls: int = field(default_factory=lambda: min(os.cpu_count() or 1, MAX_MODEL_CALLS))

    # Of each worker, for pictures: a thousand of 64 x 64, and the worker stays under 100 MB.
    cache_mb: int = 16

    # Prometheus asks here. A port of its own: what is counted is nobody's business outside.
    metrics_port: int = 9100

    # The batch server, at the same host.
    batch_port: int = 9090
    batch_metrics_port: int = 9101

    # Of GenerateBatch calls at a time: each keeps up to three batches of pictures, at most 10 MB of the largest.
    batch_streams: int = 16

    # What streams get when the batch server is told to end: with what follows within the 30 s that Kubernetes waits.
    batch_drain_s: float = 10.0

    # Of both doors, PEM: a certificate with its chain and its key; and the CA whose certificates callers have to show.
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    # Of both doors: who doesn't send it gets nothing but probes.
    token: str | None = field(default=None, repr=False)

    # For people; containers say json.
    log_format: str = "text"

    def __post_init__(self) -> None:
        """Raise SettingsError for a half of what goes together only."""
        tls = {"RINGO_TLS_CERTIFICATE": self.tls_certificate, "RINGO_TLS_KEY": self.tls_key}
        given = {"RINGO_TLS_CLIENT_CA": self.tls_client_ca, **tls}
        for variable, path in given.items():
            for missing in (name for name, other in tls.items() if path is not None and other is None):
                raise SettingsError(variable, str(path), f"a path only together with {missing}")

    @property
    def model_server_address(self) -> tuple[str, int]:
        """Host and port of the model server; an IPv6 address without its brackets."""
        host, _, port = self.model_server.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Return the settings that `environ` gives, and the defaults for those that it leaves out.

        Raises SettingsError for a value that can't be used, and for a RINGO_ variable that there is not: a typo must
        not quietly mean the default.
        """
        names = {PREFIX + field.name.upper(): field.name for field in fields(cls)}
        chosen: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in names:
                raise SettingsError(variable, None, f"only {', '.join(names)}")
            chosen[names[variable]] = read_setting(variable, text)
        return cls(**chosen)


def read_setting(variable: str, text: str) -> object:
    """Return what `text` sets the setting of `variable` to; raise SettingsError if it can't be used."""
    read, allowed = READERS[variable.removeprefix(PREFIX).lower()]
    try:
        text.encode()  # bytes that are not UTF-8 are surrogates in os.environ
        return read(text)
    except UnicodeEncodeError:
        raise SettingsError(variable, text, f"{allowed}, in UTF-8") from None
    except ValueError:
        raise SettingsError(variable, text, allowed) from None


def read_text(text: str) -> str:
    """Return `text`; raise ValueError if it is blank."""
    if not text.strip():
        raise ValueError
    return text


def _path(text: str) -> Path:
    return Path(read_text(text))


def integer_reader(low: int, high: int) -> Callable[[str], int]:
    """Return what reads a whole number, or raises ValueError if it isn't one from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return read


def seconds_reader(high: float) -> Callable[[str], float]:
    """Return what reads a number of seconds, or raises ValueError if it isn't above 0, up to `high`."""

    def read(text: str) -> float:
        # float() alone takes what no other number here may be: "1_0", " 5 ", digits of other scripts, "nan".
        if not re.fullmatch("[0-9.]+", text) or not 0 < float(text) <= high:
            raise ValueError
        return float(text)

    return read


def flag(read: Callable[[str], T], allowed: str) -> Callable[[str], T]:
    """Return `read` for argparse: where that raises ValueError, the sentence names flag, value and what is allowed."""

    def parse_value(value: str) -> T:
        try:
            return read(value)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{value!r} is not valid; allowed is {allowed}.") from None

    return parse_value


def _token(text: str) -> str:
    if not re.fullmatch("[A-Za-z0-9._~+/-]{16,}=*", text):  # RFC 6750's characters
        raise ValueError
    return text


def read_log_format(text: str) -> str:
    """Return `text`; raise ValueError if it is none of LOG_FORMATS."""
    if text not in LOG_FORMATS:
        raise ValueError
    return text


def _target(text: str) -> str:
    host, _, port = text.rpartition(":")
    return f"{read_text(host)}:{integer_reader(1, 65535)(port)}"


# For each setting: what reads its text or raises ValueError, and what to tell who wrote another.
READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "host": (read_text, "the name or address to listen on"),
    "port": (integer_reader(1, 65535), "a whole number from 1 to 65535"),
    "model_server": (_target, "host:port of a model server's gRPC"),
    "model_name": (read_text, "the name of a model"),
    "model_base_path": (_path, "the path of a folder"),
    "predict_timeout_s": (seconds_reader(MAX_TIMEOUT_S), f"a number of seconds above 0, up to {MAX_TIMEOUT_S:g}"),
    "workers": (integer_reader(1, 64), "a whole number from 1 to 64"),
    "max_in_flight": (integer_reader(1, 256), "a whole number from 1 to 256"),
    "model_calls": (integer_reader(1, MAX_MODEL_CALLS), f"a whole number from 1 to {MAX_MODEL_CALLS}"),
    "cache_mb": (integer_reader(0, 65536), "a whole number from 0 (nothing is kept) to 65536"),
    "metrics_port": (integer_reader(1, 65535), "a whole number from 1 to 65535"),
    "batch_port": (integer_reader(1, 65535), "a whole number from 1 to 65535"),
    "batch_metrics_port": (integer_reader(1, 65535), "a whole number from 1 to 65535"),
    "batch_streams": (integer_reader(1, 256), "a whole number from 1 to 256"),
    "batch_drain_s": (seconds_reader(MAX_TIMEOUT_S), f"a number of seconds above 0, up to {MAX_TIMEOUT_S:g}"),
    "tls_certificate": (_path, "the path of a PEM file"),
    "tls_key": (_path, "the path of a PEM file"),
    "tls_client_ca": (_path, "the path of a PEM file"),
    "token": (_token, "at least 16 ASCII letters, digits and characters of ._~+/-, and no newline"),
    "log_format": (read_log_format, " or ".join(LOG_FORMATS)),
}
