"""Model servers that tests kill and start again, and Debian's nginx with deploy/nginx.conf before a real gateway."""

import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import trustme

from tests.conftest import BUNDLED, LIMIT_S, ROOT, command, started, wait_until
from tests.gateway_process import free_port

BUNDLED_MODEL = BUNDLED.parent
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")


class ModelServer:
    """The embedded model server on `models`, or a fake one; a `with` block starts and ends it."""

    def __init__(self, models: Path | None = None) -> None:
        self.port = free_port()
        self.target = f"127.0.0.1:{self.port}"
        if models is None:
            program = ("tests.fake_model_server",)
        else:
            program = ("serving", "model-server", "--model_base_path", models, "--file_system_poll_wait_seconds", 0.2)
        self._command = command(*program, "--port", self.port, "--model_name", "apple")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start a process, and return once it listens."""
        self.process = subprocess.Popen(self._command, cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_until(lambda: listens(self.port), "a model server that listens")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@dataclass(frozen=True)
class Proxy:
    port: int
    tls_port: int
    context: ssl.SSLContext  # of a client that trusts the proxy's certificate
    log: Path


@contextmanager
def proxy_before(gateway_port: int, folder: Path, changes: Mapping[str, str] | None = None) -> Iterator[Proxy]:
    """Run nginx with deploy/nginx.conf and deploy/tls.conf, after `changes`."""
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    proxy = Proxy(free_port(), free_port(), context, folder / "requests.log")
    certificate = ca.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "tls").mkdir()
    write_adapted("tls.conf", folder / "tls" / "tls.conf", {"/run/tls/": f"{folder}/", "8443": str(proxy.tls_port)})
    places = {
        **(changes or {}),
        "/tmp/": f"{folder}/",
        "/dev/stdout": str(proxy.log),
        "gateway:8080": f"127.0.0.1:{gateway_port}",
        "listen 8080": f"listen {proxy.port}",
    }
    write_adapted("nginx.conf", folder / "nginx.conf", places)
    user = ("-g", "user root;") if os.geteuid() == 0 else ()
    words = [str(NGINX), "-c", folder / "nginx.conf", *user]
    with started(words, folder / "nginx.log", lambda: listens(proxy.port), cwd=folder):
        yield proxy


def write_adapted(name: str, file: Path, places: dict[str, str]) -> None:
    """Write deploy/`name` to `file` with each of `places` replaced."""
    text = (ROOT / "deploy" / name).read_text()
    for place, replacement in places.items():
        assert place in text, place
        text = text.replace(place, replacement)
    file.write_text(text)
