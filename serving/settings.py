"""Settings of the servers, read once from environment variables."""

import argparse
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

PREFIX = "RINGO_"
T = TypeVar("T")

MAX_MODEL_CALLS = 64
MAX_NAME_BYTES = 255  # of a folder's name, which `export` makes the model's
MODEL_NAME_ALLOWED = f"the name of a model, of printable characters, at most {MAX_NAME_BYTES} bytes"
LOG_FORMATS = ("text", "json")
MAX_TIMEOUT_S = 600.0  # a larger number is probably milliseconds


class SettingsError(Exception):
    """A setting is invalid; the text names variable, value and allowed values.

    The value is None for an unknown variable: a mistyped name may hold a secret.
    """

    def __init__(self, variable: str, value: str | None, allowed: str) -> None:
        is_secret = "TOKEN" in variable or "PRIVATE KEY" in (value or "")
        shown = "no setting" if value is None else "not shown" if is_secret else repr(value)
        super().__init__(f"{variable} is {shown}; allowed is {allowed}.")


@dataclass(frozen=True)
class Settings:
    """Settings of gateway, batch server and `run`; docs/settings.md describes them."""

    host: str = "127.0.0.1"
    port: int = 8080
    path_prefix: str = ""
    model_server: str = "127.0.0.1:8500"
    model_name: str = "apple"
    model_base_path: Path = Path("models/apple")
    # An image takes tens of milliseconds on two cores. 10 s outlast a queue of hundreds, and end before the 15 to 30 s
    # at which proxies give up.
    predict_timeout_s: float = 10.0
    workers: int = 1  # a core encodes 200 images a second
    max_in_flight: int = 64  # the last of 64 waits 2 s at 30 ms an image
    model_calls: int = field(default_factory=lambda: min(os.cpu_count() or 1, MAX_MODEL_CALLS))
    cache_mb: int = 16  # holds a thousand images of 64 x 64, and a worker stays below 100 MB
    metrics_port: int = 9100
    batch_port: int = 9090
    batch_metrics_port: int = 9101
    batch_streams: int = 16  # each holds up to three batches of images, at most 10 MB of the largest
    batch_drain_s: float = 10.0  # and 5 s more, within the 30 s that Kubernetes waits
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    token: str | None = field(default=None, repr=False)
    log_format: str = "text"

    def __post_init__(self) -> None:
        """Raise SettingsError for a TLS file without the others that it needs."""
        tls = {"RINGO_TLS_CERTIFICATE": self.tls_certificate, "RINGO_TLS_KEY": self.tls_key}
        paths = {"RINGO_TLS_CLIENT_CA": self.tls_client_ca, **tls}
        for variable, path in paths.items():
            for missing in (name for name, other in tls.items() if path is not None and other is None):
                raise SettingsError(variable, str(path), f"a path only together with {missing}")

    @property
    def model_server_address(self) -> tuple[str, int]:
        """Host, without brackets, and port of the model server."""
        host, _, port = self.model_server.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Return the settings of `environ`, with defaults for missing ones.

        Raises SettingsError for an invalid value or an unknown RINGO_ variable.
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
    """Return the value of `text` for `variable`, or raise SettingsError."""
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


def read_model_name(text: str) -> str:
    """Return `text`; raise ValueError unless it is a name that `export` allows."""
    if not text.isprintable() or len(text.encode()) > MAX_NAME_BYTES:
        raise ValueError
    return read_text(text)


def _path(text: str) -> Path:
    if "\n" in text:  # the content of a file
        raise ValueError
    return Path(read_text(text))


def read_folder(text: str) -> Path:
    """Return the path `text`; raise ValueError if it is no folder."""
    path = _path(text)
    if path.exists() and not path.is_dir():
        raise ValueError
    return path


def integer_reader(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return read


def seconds_reader(high: float) -> Callable[[str], float]:
    """Return a reader of seconds above 0, up to `high`."""

    def read(text: str) -> float:
        # float() alone accepts "1_0", " 5 ", "nan" and digits of other scripts.
        if not re.fullmatch("[0-9.]+", text) or not 0 < float(text) <= high:
            raise ValueError
        return float(text)

    return read


def flag(read: Callable[[str], T], allowed: str, *, has_faults: bool = False) -> Callable[[str], T]:
    """Return `read` for argparse; its errors name `allowed`, or their fault."""

    def parse_value(value: str) -> T:
        try:
            return read(value)
        except ValueError as error:
            fault = (has_faults and str(error)) or f"is not valid; allowed is {allowed}"
            raise argparse.ArgumentTypeError(f"{value!r} {fault}.") from None

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


def read_target(text: str) -> str:
    """Return `text`, a gRPC target with port; or raise ValueError."""
    addresses, scheme = addresses_of(text), text.partition(":")[0]
    if not addresses or (len(addresses) > 1 and scheme not in ("ipv4", "ipv6")):
        raise ValueError
    for host, ipv6, port in addresses:
        integer_reader(1, 65535)(port)
        if ipv6 or scheme == "ipv6":
            ipaddress.IPv6Address(ipv6)
        if scheme == "ipv4":
            ipaddress.IPv4Address(host)
    return text


def addresses_of(target: str) -> list[tuple[str, str, str]]:
    """Return for each address its host, the same without brackets if IPv6, and its port."""
    found = TARGET.fullmatch(target)
    return ADDRESS.findall(found["addresses"]) if found else []


def _path_prefix(text: str) -> str:
    if not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)*", text) or RESOURCE.fullmatch(text):
        raise ValueError
    return text


# The gateway's routes. As a prefix, a route is ambiguous: the proxy may have removed the prefix.
RESOURCE = re.compile(
    r"/(generate|grid|morph|animation|about|docs|livez|readyz|(name|static)(/.*)?|[^/]*\.(json|ico|png|webp|jpe?g))"
)
ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]):([0-9]{1,5})")
TARGET = re.compile(rf"(dns:(//[^/\s]*/)?|ipv4:|ipv6:)?(?P<addresses>{ADDRESS.pattern}(,{ADDRESS.pattern})*)")
TARGET_ALLOWED = "host:port of a gRPC server without http://, an IPv6 address in brackets"
FOLDER = (read_folder, "a folder, which need not exist yet")
PORT = (integer_reader(1, 65535), "a whole number from 1 to 65535")
SECONDS = (seconds_reader(MAX_TIMEOUT_S), f"a number of seconds above 0, up to {MAX_TIMEOUT_S:g}")
PEM_FILE = (_path, "the path of a PEM file")
# For each setting: a reader that raises ValueError for invalid text, and the allowed values.
READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "host": (read_text, "the name or address to listen on"),
    "port": PORT,
    "path_prefix": (_path_prefix, "a path such as /ringo, of letters, digits and ._~-, no resource and no final slash"),
    "model_server": (read_target, TARGET_ALLOWED),
    "model_name": (read_model_name, MODEL_NAME_ALLOWED),
    "model_base_path": (_path, "the path of a folder"),
    "predict_timeout_s": SECONDS,
    "workers": (integer_reader(1, 64), "a whole number from 1 to 64"),
    "max_in_flight": (integer_reader(1, 256), "a whole number from 1 to 256"),
    "model_calls": (integer_reader(1, MAX_MODEL_CALLS), f"a whole number from 1 to {MAX_MODEL_CALLS}"),
    "cache_mb": (integer_reader(0, 65536), "a whole number from 0 (no cache) to 65536"),
    "metrics_port": PORT,
    "batch_port": PORT,
    "batch_metrics_port": PORT,
    "batch_streams": (integer_reader(1, 256), "a whole number from 1 to 256"),
    "batch_drain_s": SECONDS,
    "tls_certificate": PEM_FILE,
    "tls_key": PEM_FILE,
    "tls_client_ca": PEM_FILE,
    "token": (_token, "at least 16 ASCII letters, digits and characters of ._~+/-, and no newline"),
    "log_format": (read_log_format, " or ".join(LOG_FORMATS)),
}
