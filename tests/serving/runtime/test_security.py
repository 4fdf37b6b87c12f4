"""TLS, certificates of callers and the token, at both doors."""

import http.client
import json
import re
import ssl
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme

from serving.gateway.app import create_app
from serving.gateway.pages import PROBES
from serving.pb.ringo.v1 import picture_service_pb2
from serving.runtime.security import check_tls
from serving.settings import Settings, SettingsError
from tests.batch_process import SERVING, Batch, batch_for
from tests.conftest import LIMIT_S, ROOT, VERSION, command
from tests.gateway_process import environment, gateway_for

TOKEN = "0123456789abcdef"
BEARER = f"Bearer {TOKEN}"
DESCRIBE = picture_service_pb2.DescribeModelRequest()


@dataclass(frozen=True)
class Papers:
    """PEM files: the server's certificate and key, the CA that both sides trust, and certificates with keys.

    The caller's is of that CA, the stranger's of another one.
    """

    certificate: Path
    key: Path
    ca: Path
    caller: Path
    stranger: Path

    @property
    def tls(self) -> dict[str, Path]:
        return {"tls_certificate": self.certificate, "tls_key": self.key}

    def credentials(self, *, caller: bool = False) -> grpc.ChannelCredentials:
        pem = self.caller.read_bytes() if caller else None
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), private_key=pem, certificate_chain=pem)

    def context(self, *, caller: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if caller:
            context.load_cert_chain(self.caller)
        return context


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    papers = Papers(*(folder / f"{name}.pem" for name in ("server", "key", "ca", "caller", "stranger")))
    ca = trustme.CA()
    server = ca.issue_cert("localhost")
    for blob in server.cert_chain_pems:
        blob.write_to_path(papers.certificate, append=True)
    server.private_key_pem.write_to_path(papers.key)
    ca.cert_pem.write_to_path(papers.ca)
    ca.issue_cert("caller").private_key_and_cert_chain_pem.write_to_path(papers.caller)
    trustme.CA().issue_cert("caller").private_key_and_cert_chain_pem.write_to_path(papers.stranger)
    return papers


def described(batch: Batch, *metadata: tuple[str, str]) -> str:
    """Return the model's name, or the code of the refusal, over the channel of `batch`."""
    try:
        return batch.pictures.DescribeModel(DESCRIBE, metadata=metadata, timeout=LIMIT_S).name
    except grpc.RpcError as error:
        return error.code().name


@pytest.fixture(scope="module")
def batch(model_server, papers, tmp_path_factory):
    """With TLS and a token."""
    folder = tmp_path_factory.mktemp("batch")
    with batch_for(model_server.target, folder, credentials=papers.credentials(), token=TOKEN, **papers.tls) as batch:
        yield batch


@pytest.mark.parametrize(
    ("metadata", "answer"),
    [
        ((), "UNAUTHENTICATED"),
        ((("authorization", "Bearer wrong-token-of-16"),), "UNAUTHENTICATED"),
        ((("authorization", "Bearer"),), "UNAUTHENTICATED"),
        ((("authorization", TOKEN),), "UNAUTHENTICATED"),
        ((("authorization", f"Basic {TOKEN}"),), "UNAUTHENTICATED"),
        ((("authorization", BEARER),), "apple"),
        ((("authorization", f"bearer {TOKEN}"),), "apple"),
    ],
)
def test_the_batch_server_answers_who_bears_the_token(batch, metadata, answer):
    assert described(batch, *metadata) == answer


def test_health_is_for_everybody_and_a_stream_for_bearers(batch):
    assert batch.status() == SERVING
    with pytest.raises(grpc.RpcError) as refused:
        batch.paint([1])
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refused.value.details() == "This service requires its token; send the header `authorization: Bearer ...`."


def test_with_tls_who_comes_without_gets_nothing(batch):
    with grpc.insecure_channel(batch.target) as channel:
        describe = channel.unary_unary("/ringo.v1.PictureService/DescribeModel")
        with pytest.raises(grpc.RpcError) as refused:
            describe(b"", timeout=LIMIT_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_painter_trusts_the_servers_own_certificate_whoever_signed_it(batch, papers, tmp_path):
    flags = ("--target", f"dns:///{batch.target}", "--ca", papers.certificate, "--seeds", "0:3", "--out", tmp_path)
    settings = environment(token=TOKEN)
    done = subprocess.run(
        command("serving", "paint", *flags), env=settings, capture_output=True, timeout=LIMIT_S, cwd=ROOT
    )
    assert (done.returncode, len(list(tmp_path.rglob("*.png")))) == (0, 3), done.stderr


def test_the_batch_server_lets_in_whose_certificate_it_trusts(model_server, papers, tmp_path):
    with batch_for(
        model_server.target,
        tmp_path,
        credentials=papers.credentials(caller=True),
        tls_client_ca=papers.ca,
        **papers.tls,
    ) as batch:
        assert described(batch) == "apple"
        stranger = papers.stranger.read_bytes()
        for credentials in (
            papers.credentials(),
            grpc.ssl_channel_credentials(papers.ca.read_bytes(), private_key=stranger, certificate_chain=stranger),
        ):
            with grpc.secure_channel(batch.target, credentials) as channel:
                describe = channel.unary_unary("/ringo.v1.PictureService/DescribeModel")
                with pytest.raises(grpc.RpcError) as refused:
                    describe(b"", timeout=LIMIT_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def write_certificate(ca: trustme.CA, files: dict[str, Path]) -> grpc.ChannelCredentials:
    """Write a certificate of `ca` to `files`; return the credentials of a client that trusts `ca` alone."""
    issued = ca.issue_cert("localhost")
    files["tls_key"].write_bytes(issued.private_key_pem.bytes())
    files["tls_certificate"].write_bytes(issued.cert_chain_pems[0].bytes())
    return grpc.ssl_channel_credentials(ca.cert_pem.bytes())


def test_the_batch_server_serves_a_renewed_certificate_without_a_restart(model_server, tmp_path):
    files = {name: tmp_path / f"{name}.pem" for name in ("tls_certificate", "tls_key")}
    with (
        batch_for(model_server.target, tmp_path, credentials=write_certificate(trustme.CA(), files), **files) as batch,
        grpc.secure_channel(batch.target, write_certificate(trustme.CA(), files)) as channel,
    ):
        describe = channel.unary_unary("/ringo.v1.PictureService/DescribeModel")
        assert describe(b"", timeout=LIMIT_S)


@pytest.fixture(scope="module")
def gateway(model_server, tmp_path_factory):
    """With a token."""
    with gateway_for(model_server.target, tmp_path_factory.mktemp("gateway"), token=TOKEN) as gateway:
        yield gateway


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong-token-of-16"}, {"Authorization": TOKEN}])
def test_the_gateway_answers_401_to_who_does_not_bear_the_token(gateway, headers):
    reply = gateway.ask("/generate?seed=1", **headers)
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert reply.problem["type"] == "urn:ringo:problem:not-authenticated"


def test_the_gateway_answers_who_bears_the_token_and_lets_no_shared_cache_keep_it(gateway):
    reply = gateway.ask(f"/generate?seed=1&version={VERSION}", Authorization=BEARER)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/png")
    assert reply.headers["Cache-Control"] == "private, max-age=31536000, immutable"


@pytest.mark.parametrize(("method", "path"), [("GET", "/livez"), ("GET", "/readyz"), ("OPTIONS", "/generate")])
def test_probes_and_preflights_need_no_token(gateway, method, path):
    assert gateway.ask(path, method).status == 200


def test_the_description_says_what_needs_the_token(gateway):
    described = json.loads(gateway.ask("/openapi.json", Authorization=BEARER).body)
    assert described["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    open_to_all = {path for path, methods in described["paths"].items() if "401" not in methods["get"]["responses"]}
    assert open_to_all == {"/livez", "/readyz"}


def test_without_the_token_there_is_nothing_but_probes(gateway):
    rules = create_app(Settings()).url_map.iter_rules()
    paths = {rule.rule.replace("<path:filename>", "gallery.css") for rule in rules} | {"/nowhere"}
    answers = {path: gateway.ask(path).status for path in paths}
    assert answers == {path: 200 if path in PROBES else 401 for path in paths}
    assert gateway.ask("/generate", "POST").status == 401


@pytest.fixture(scope="module")
def tls_gateway(model_server, papers, tmp_path_factory):
    """With TLS, for clients with a certificate."""
    folder = tmp_path_factory.mktemp("tls_gateway")
    with gateway_for(model_server.target, folder, tls_client_ca=papers.ca, **papers.tls) as gateway:
        yield gateway


def status_of(port: int, context: ssl.SSLContext) -> int:
    with closing(http.client.HTTPSConnection("localhost", port, timeout=LIMIT_S, context=context)) as connection:
        connection.request("GET", "/livez")
        return connection.getresponse().status


def test_the_gateway_serves_tls_to_clients_with_a_certificate_of_the_ca(tls_gateway, papers):
    for port in (tls_gateway.port, tls_gateway.metrics_port):
        assert status_of(port, papers.context(caller=True)) == 200


@pytest.mark.parametrize("certificate", [None, "stranger"])
def test_the_gateway_refuses_tls_clients_without_a_certificate_of_the_ca(tls_gateway, papers, certificate):
    context = papers.context()
    if certificate is not None:
        context.load_cert_chain(papers.stranger)
    for port in (tls_gateway.port, tls_gateway.metrics_port):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            status_of(port, context)


@pytest.mark.parametrize(("path", "beginning"), [("/metrics", b"# HELP"), ("/livez", b"alive"), ("/readyz", b"ready")])
def test_the_metrics_port_serves_metrics_and_probes_without_a_token(gateway, path, beginning):
    assert gateway.ask(path, port=gateway.metrics_port).body.startswith(beginning)


def test_the_health_check_of_the_image_needs_no_token(gateway):
    dockerfile = (ROOT / "Dockerfile.serve").read_text()
    program, *check = json.loads(re.search(r"^HEALTHCHECK .*\\\n +CMD (.*)$", dockerfile, re.MULTILINE)[1])
    assert program == "python"
    settings = environment(port=gateway.port, metrics_port=gateway.metrics_port)
    done = subprocess.run([sys.executable, *check], env=settings, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr


def test_the_token_is_in_no_representation_and_no_log(gateway, batch):
    assert TOKEN not in repr(Settings(token=TOKEN))
    assert TOKEN not in gateway.log.read_text() + batch.log.read_text()


@pytest.mark.parametrize(
    ("variable", "content", "sentence"),
    [
        ("tls_certificate", None, "allowed is a certificate in PEM that fits RINGO_TLS_KEY, both readable: No such"),
        ("tls_certificate", "x", "allowed is a certificate in PEM that fits RINGO_TLS_KEY, both readable: "),
        ("tls_key", "x", "allowed is a certificate in PEM that fits RINGO_TLS_KEY, both readable: "),
        ("tls_client_ca", "x", "allowed is readable certificates in PEM: "),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(papers, tmp_path, variable, content, sentence):
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        check_tls(Settings(**papers.tls | {variable: file}))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("part", ["gateway", "batch", "run"])
def test_without_its_certificate_no_part_starts(papers, tmp_path, part):
    settings = environment(**papers.tls | {"tls_certificate": tmp_path / "none.pem"})
    done = subprocess.run(
        command("serving", part), env=settings, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("RINGO_TLS_CERTIFICATE is '")


def test_the_threat_model_names_tests_that_there_are():
    written = (ROOT / "SECURITY.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for path in re.findall(r"`((?:tests|\.github)/[a-z_./]+)`", written):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(test_\w+)`", written):
        assert f"def {name}(" in sources, name
