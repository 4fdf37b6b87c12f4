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
from tests.batch_process import SERVING, Batch, batch_for, refusal
from tests.conftest import LIMIT_S, ROOT, VERSION
from tests.gateway_process import environment, gateway_for, run_serving

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
    ("authorization", "answer"),
    [
        *((wrong, "UNAUTHENTICATED") for wrong in ("", "Bearer wrong-token-of-16", "Bearer", TOKEN, f"Basic {TOKEN}")),
        *((right, "apple") for right in (BEARER, f"bearer {TOKEN}")),
    ],
)
def test_batch_server_answers_clients_with_the_token_only(batch, authorization, answer):
    assert described(batch, *([("authorization", authorization)] if authorization else [])) == answer


def test_batch_server_answers_health_checks_and_no_stream_without_the_token(batch):
    assert batch.status() == SERVING
    code, sentence, _ = refusal(lambda: batch.paint([1]))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert sentence == "This service requires its token; send the header `authorization: Bearer ...`."


def test_a_painter_trusts_the_servers_own_certificate_whoever_signed_it(batch, papers, tmp_path):
    flags = ("--target", f"dns:///{batch.target}", "--ca", papers.certificate, "--seeds", "0:3", "--out", tmp_path)
    done = run_serving("paint", *flags, token=TOKEN)
    assert (done.returncode, len(list(tmp_path.rglob("*.png")))) == (0, 3), done.stderr


def test_batch_server_serves_clients_with_a_certificate_of_the_ca_only(model_server, papers, tmp_path):
    credentials, stranger = papers.credentials(caller=True), papers.stranger.read_bytes()
    mutual_tls = papers.tls | {"tls_client_ca": papers.ca}
    with batch_for(model_server.target, tmp_path, credentials=credentials, **mutual_tls) as batch:
        assert described(batch) == "apple"
        for channel in (
            grpc.insecure_channel(batch.target),
            grpc.secure_channel(batch.target, papers.credentials()),
            grpc.secure_channel(batch.target, grpc.ssl_channel_credentials(papers.ca.read_bytes(), stranger, stranger)),
        ):
            with channel, pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/ringo.v1.PictureService/DescribeModel")(b"", timeout=LIMIT_S)
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


def test_gateway_answers_probes_and_preflights_only_without_the_token(gateway):
    rules = create_app(Settings()).url_map.iter_rules()
    paths = {rule.rule.replace("<path:filename>", "gallery.css") for rule in rules} | {"/nowhere"}
    assert {path: gateway.ask(path).status for path in paths} == {
        path: 200 if path in PROBES else 401 for path in paths
    }
    assert (gateway.ask("/generate", "POST").status, gateway.ask("/generate", "OPTIONS").status) == (401, 200)
    for wrong in ("Bearer wrong-token-of-16", TOKEN):
        reply = gateway.ask("/generate?seed=1", Authorization=wrong)
        assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_shared_caches_must_not_store_images_when_a_token_is_set(gateway):
    reply = gateway.ask(f"/generate?seed=1&version={VERSION}", Authorization=BEARER)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/png")
    assert reply.headers["Cache-Control"] == "private, max-age=31536000, immutable"


def test_openapi_names_the_paths_that_need_the_token(gateway):
    paths = json.loads(gateway.ask("/openapi.json", Authorization=BEARER).body)["paths"]
    assert {path for path, methods in paths.items() if "401" not in methods["get"]["responses"]} == set(PROBES)


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


def test_gateway_serves_tls_clients_with_a_certificate_of_the_ca_only(tls_gateway, papers):
    stranger = papers.context()
    stranger.load_cert_chain(papers.stranger)
    for port in (tls_gateway.port, tls_gateway.metrics_port):
        assert status_of(port, papers.context(caller=True)) == 200
        for context in (papers.context(), stranger):
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
