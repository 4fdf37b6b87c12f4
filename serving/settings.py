"""Settings of the servers, read once from environment variables."""

import argparse
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, TypeVar, get_type_hints

PREFIX = "RINGO_"
T = TypeVar("T")

MAX_MODEL_CALLS = 64
MAX_NAME_BYTES = 255  # of a folder's name; `export` names the model after its folder
MAX_TIMEOUT_S = 600.0  # a larger number is probably milliseconds

# The gateway's routes. As a prefix, a route is ambiguous: the proxy may have removed the prefix.
RESOURCE = re.compile(
    r"/(generate|grid|morph|animation|about|docs|livez|readyz|(name|static)(/.*)?|[^/]*\.(json|ico|png|webp|jpe?g))"
)
ADDRESS = re.compile(r"([A-Za-z0-9._-]+|\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?)\]):([0-9]{1,5})")
ADDRESSES = re.compile(rf"(dns:(//[^/\s]*/)?|ipv4:|ipv6:)?(?P<addresses>{ADDRESS.pattern}(,{ADDRESS.pattern})*)")


class SettingsError(Exception):
    """A setting is invalid; the text names variable, value and allowed values.

    The value is None for an unknown variable: a mistyped name may hold a secret. `sentence` replaces the whole text.
    """

    def __init__(self, variable: str, value: str | None = None, allowed: str = "", *, sentence: str = "") -> None:
        is_secret = "TOKEN" in variable or "PRIVATE KEY" in (value or "")
        shown = "no setting" if value is None else "not shown" if is_secret else repr(value)
        super().__init__(sentence or f"{variable} is {shown}; allowed is {allowed}.")


def matching(
    pattern: str, convert: Callable[[str], Any] = str, is_valid: Callable[[Any], bool] = lambda value: True
) -> Callable[[str], Any]:
    """Return a reader that raises ValueError unless `pattern` matches the text, and `is_valid` its value."""

    def read(text: str) -> Any:
        if not re.fullmatch(pattern, text) or not is_valid(value := convert(text)):
            raise ValueError
        return value

    return read


def _target(text: str) -> str:
    addresses, scheme = addresses_of(text), text.partition(":")[0]
    if not addresses or (len(addresses) > 1 and scheme not in ("ipv4", "ipv6")):
        raise ValueError
    for host, ipv6, port in addresses:
        PORT.read(port)
        if ipv6 or scheme == "ipv6":
            ipaddress.IPv6Address(ipv6)
        if scheme == "ipv4":
            ipaddress.IPv4Address(host)
    return text


def addresses_of(target: str) -> list[tuple[str, str, str]]:
    """Return host, IPv6 address without brackets, and port of each address."""
    found = ADDRESSES.fullmatch(target)
    return ADDRESS.findall(found["addresses"]) if found else []


class Kind(NamedTuple):
    """A kind of value of settings and flags."""

    read: Callable[[str], Any]  # raises ValueError for invalid text
    allowed: str


def whole_numbers(low: int, high: int, lowest: str = "") -> Kind:
    """Return the kind of integers from `low` to `high`; `lowest` explains `low`."""
    read = matching("[0-9]{1,9}", int, lambda number: low <= number <= high)
    return Kind(read, f"a whole number from {low}{lowest and f' ({lowest})'} to {high}")


def seconds(high: float) -> Kind:
    """Return the kind of numbers of seconds above 0, up to `high`."""
    # float() alone accepts "1_0", " 5 ", "nan" and digits of other scripts.
    read = matching("[0-9.]+", float, lambda number: 0 < number <= high)
    return Kind(read, f"a number of seconds above 0, up to {high:g}")


# Not blank; the content of a file has more lines. `.*\S.*` would take 18 s for 100,000 characters and a newline.
LINE = r"[^\S\n]*\S.*"
HOST = Kind(matching(r"\s*\S(?s:.*)"), "the name or address to listen on")
PORT = whole_numbers(1, 65535)
SECONDS = seconds(MAX_TIMEOUT_S)
PATH_PREFIX = Kind(
    matching(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)*", is_valid=lambda prefix: not RESOURCE.fullmatch(prefix)),
    "a path such as /ringo, of letters, digits and ._~-, no gateway path, no final slash",
)
TARGET = Kind(_target, "host:port of a gRPC server without http://, an IPv6 address in brackets")
MODEL_NAME = Kind(
    matching(LINE, is_valid=lambda name: name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES),
    f"the name of a model, of printable characters, at most {MAX_NAME_BYTES} bytes",
)
FOLDER = Kind(  # pathlib raises for long names
    matching(LINE, Path, lambda path: os.path.isdir(path) or not os.path.exists(path)),  # noqa: PTH110, PTH112
    "a folder, which need not exist yet",
)
PEM_FILE = Kind(matching(LINE, Path), "the path of a PEM file")
# RFC 6750's characters
TOKEN = Kind(
    matching("[A-Za-z0-9._~+/-]{16,}=*"), "at least 16 ASCII letters, digits and characters of ._~+/-, and no newline"
)
LOG_FORMAT = Kind(matching("text|json"), "text or json")


@dataclass(frozen=True)
class Settings:
    """Settings of gateway, batch server and `run`; docs/settings.md describes them."""

    host: Annotated[str, HOST] = "127.0.0.1"
    port: Annotated[int, PORT] = 8080
    path_prefix: Annotated[str, PATH_PREFIX] = ""
    model_server: Annotated[str, TARGET] = "127.0.0.1:8500"
    model_name: Annotated[str, MODEL_NAME] = "apple"
    model_base_path: Annotated[Path, Kind(matching(LINE, Path), "the path of a folder")] = Path("models/apple")
    # An image takes tens of milliseconds on two cores. 10 s are enough for a queue of hundreds, and less than the 15 to
    # 30 s after which proxies time out.
    predict_timeout_s: Annotated[float, SECONDS] = 10.0
    workers: Annotated[int, whole_numbers(1, 64)] = 1  # a core encodes 200 images a second
    max_in_flight: Annotated[int, whole_numbers(1, 256)] = 64  # the last of 64 waits 2 s at 30 ms an image
    model_calls: Annotated[int, whole_numbers(1, MAX_MODEL_CALLS)] = field(
        default_factory=lambda: min(os.cpu_count() or 1, MAX_MODEL_CALLS)
    )
    # 16 hold a thousand images of 64 x 64, and a worker stays below 100 MB.
    cache_mb: Annotated[int, whole_numbers(0, 65536, "no cache")] = 16
    metrics_port: Annotated[int, PORT] = 9100
    batch_port: Annotated[int, PORT] = 9090
    batch_metrics_port: Annotated[int, PORT] = 9101
    # Each stream holds up to three batches of images, at most 10 MB together.
    batch_streams: Annotated[int, whole_numbers(1, 256)] = 16
    batch_drain_s: Annotated[float, SECONDS] = 10.0  # and 5 s more, within the 30 s that Kubernetes waits
    tls_certificate: Annotated[Path | None, PEM_FILE] = None
    tls_key: Annotated[Path | None, PEM_FILE] = None
    tls_client_ca: Annotated[Path | None, PEM_FILE] = None
    token: Annotated[str | None, TOKEN] = field(default=None, repr=False)
    log_format: Annotated[str, LOG_FORMAT] = "text"

    def __post_init__(self) -> None:
        """Raise SettingsError for a TLS file without the others that it needs."""
        tls = {"RINGO_TLS_CERTIFICATE": self.tls_certificate, "RINGO_TLS_KEY": self.tls_key}
        for variable, path in {"RINGO_TLS_CLIENT_CA": self.tls_client_ca, **tls}.items():
            for missing in (name for name, other in tls.items() if path is not None and other is None):
                raise SettingsError(variable, sentence=f"{variable} is set, but {missing} is not; set both.")

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
        hints = get_type_hints(cls, include_extras=True)
        kinds = {PREFIX + name.upper(): hint.__metadata__[0] for name, hint in hints.items()}
        chosen: dict[str, Any] = {}
        for variable, text in environ.items():
            if not variable.startswith(PREFIX):
                continue
            if variable not in kinds:
                raise SettingsError(variable, None, f"only {', '.join(kinds)}")
            kind = kinds[variable]
            try:
                text.encode()  # bytes that are not UTF-8 are surrogates in os.environ
                chosen[variable.removeprefix(PREFIX).lower()] = kind.read(text)
            except UnicodeEncodeError:
                raise SettingsError(variable, text, f"{kind.allowed}, in UTF-8") from None
            except ValueError:
                raise SettingsError(variable, text, kind.allowed) from None
        return cls(**chosen)


def flag(read: Callable[[str], T], allowed: str, *, has_faults: bool = False) -> Callable[[str], T]:
    """Return `read` for argparse; errors name `allowed`, or with `has_faults` the fault."""

    def parse_value(value: str) -> T:
        try:
            return read(value)
        except ValueError as error:
            fault = (has_faults and str(error)) or f"is not valid; allowed is {allowed}"
            raise argparse.ArgumentTypeError(f"{value!r} {fault}.") from None

    return parse_value
