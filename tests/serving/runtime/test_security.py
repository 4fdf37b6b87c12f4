"""TLS, client certificates and the token of gateway and batch server."""

import json
import os
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import trustme

from serving.gateway.app import create_app
from serving.gateway.openapi import PROBES
from serving.pb.ringo.v1 import picture_service_pb2
from serving.settings import Settings
from tests.batch_process import Batch, batch_for, refusal
from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.gateway_process import Gateway, Reply, gateway_for, run_serving, scrape, tls, value

TOKEN = "0123456789abcdef"
BEARER = f"Bearer {TOKEN}"
WRONG_CREDENTIALS = ("", "Bearer wrong-token-of-16", "Bearer", TOKEN, f"Basic {TOKEN}")
SETTINGS = {"token": TOKEN}


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> dict[str, Path]:
    """PEM files: the `ca`, certificates of it for `server` and `client`, and of another CA for a `stranger`."""
    folder, ca = tmp_path_factory.mktemp("certificates"), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name, issuer in {"server": ca, "client": ca, "stranger": trustme.CA()}.items():
        issuer.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    return {file.stem: file for file in folder.iterdir()}


def credentials(ca: Path, client: Path | None = None) -> grpc.ChannelCredentials:
    certificate = None if client is None else client.read_bytes()
    return grpc.ssl_channel_credentials(ca.read_bytes(), certificate, certificate)


def described(batch: Batch, *metadata: tuple[str, str]) -> str:
    """Return the model's name, or the refusal's code, over the channel."""
    request = picture_service_pb2.DescribeModelRequest()
    try:
        return batch.pictures.DescribeModel(request, metadata=metadata, timeout=LIMIT_S).name
    except grpc.RpcError as error:
        return error.code().name


@pytest.fixture(scope="module")
def batch(model_server, pem, tmp_path_factory):
    settings = {"credentials": credentials(pem["ca"]), "token": TOKEN, **tls(pem["server"])}
    with batch_for(model_server.target, tmp_path_factory.mktemp("batch"), **settings) as batch:
        yield batch


@pytest.mark.parametrize("authorization", [*WRONG_CREDENTIALS, BEARER, f"bearer {TOKEN}"])
def test_batch_server_answers_clients_with_the_token_only(batch, authorization):
    answer = described(batch, *([("authorization", authorization)] if authorization else []))
    assert answer == ("UNAUTHENTICATED" if authorization in WRONG_CREDENTIALS else "apple")


def test_call_is_counted_and_has_its_request_id_when_it_is_refused(batch):
    def count() -> float:
        return value(batch.metrics_port, "ringo_requests_total", outcome="not_authenticated")

    before = count()
    call = batch.stream([1], metadata=[("x-request-id", "mine")])
    code, sentence, _ = refusal(lambda: next(call))
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert sentence == "This service requires its token; send the header `authorization: Bearer ...`."
    assert dict(call.initial_metadata())["x-request-id"] == "mine"
    wait_until(lambda: count() == before + 1, "the call to be counted")


def test_an_unknown_method_is_no_label(batch):
    for path in ("/ringo.v1.PictureService/Invented", "/a.b/c"):
        with pytest.raises(grpc.RpcError):
            batch.channel.unary_unary(path)(b"", timeout=LIMIT_S)
    resources = {one.labels["resource"] for one in scrape(batch.metrics_port) if one.name == "ringo_requests_total"}
    assert "unknown" in resources
    assert resources <= {"unknown", "Generate", "GenerateBatch", "DescribeModel"}


def test_paint_trusts_the_certificate_of_the_server_as_its_own_ca(batch, pem, tmp_path):
    flags = ("--target", f"dns:///{batch.target}", "--ca", pem["server"], "--seeds", "0:3", "--out", tmp_path)
    done = run_serving("paint", *flags, token=TOKEN)
    assert (done.returncode, len(list(tmp_path.rglob("*.png")))) == (0, 3), done.stderr


@pytest.mark.parametrize(
    ("port", "flags", "sentence"),
    [
        ("batch", {}, "does not answer: it speaks TLS: give --ca."),
        ("batch", {"ca": "stranger"}, "does not answer: its certificate is not valid for this CA."),
        ("gateway", {}, "does not answer: it speaks HTTP/1, not gRPC."),
        ("gateway", {"ca": "ca"}, "does not answer: it does not speak TLS."),
        ("batch", {"ca": "notes"}, "--ca is "),
        ("batch", {"ca": "fifo"}, "--ca is "),
        ("batch", {"ca": "ca", "certificate": "client", "key": "stranger"}, "--certificate is "),
    ],
)
def test_paint_stops_at_once_when_waiting_cannot_help(batch, gateway, pem, tmp_path, port, flags, sentence):
    (tmp_path / "notes").write_text("no PEM")
    os.mkfifo(tmp_path / "fifo")
    files = {**pem, "notes": tmp_path / "notes", "fifo": tmp_path / "fifo"}
    target = batch.target if port == "batch" else f"localhost:{gateway.port}"
    chosen = [word for name, file in flags.items() for word in (f"--{name}", files[file])]
    done = run_serving("paint", "--seeds", "0:3", "--out", tmp_path / "out", "--target", target, *chosen)
    *waiting, last = done.stderr.splitlines()
    assert sentence in last
    assert (done.stdout, len(waiting) <= 1) == ("", True)  # on a busy machine, the first attempt takes over a second


def test_batch_server_serves_clients_with_a_certificate_of_the_ca_only(model_server, pem, tmp_path):
    settings = {"credentials": credentials(pem["ca"], pem["client"]), "tls_client_ca": pem["ca"], **tls(pem["server"])}
    with batch_for(model_server.target, tmp_path, **settings) as batch:
        assert described(batch) == "apple"
        for channel in (
            grpc.insecure_channel(batch.target),
            grpc.secure_channel(batch.target, credentials(pem["ca"])),
            grpc.secure_channel(batch.target, credentials(pem["ca"], pem["stranger"])),
        ):
            with channel, pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/ringo.v1.PictureService/DescribeModel")(b"", timeout=LIMIT_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        words = [f"--target={batch.target}", f"--ca={pem['ca']}", "--seeds=0-3", f"--out={tmp_path / 'out'}"]
        for certificate in ((), [f"--{name}={pem['stranger']}" for name in ("certificate", "key")]):
            assert ": it demands a valid certificate of a " in run_serving("paint", *words, *certificate).stderr


def write_certificate(ca: trustme.CA, files: dict[str, Path], **dates: datetime) -> grpc.ChannelCredentials:
    """Write a certificate to `files`; return a client's credentials that trust `ca`."""
    issued = ca.issue_cert("localhost", **dates)
    files["tls_key"].write_bytes(issued.private_key_pem.bytes())
    files["tls_certificate"].write_bytes(issued.cert_chain_pems[0].bytes())
    return grpc.ssl_channel_credentials(ca.cert_pem.bytes())


def test_servers_serve_a_renewed_certificate_without_a_restart(model_server, tmp_path):
    files = {name: tmp_path / f"{name}.pem" for name in ("tls_certificate", "tls_key")}
    ca = trustme.CA()
    with (
        batch_for(model_server.target, tmp_path, credentials=write_certificate(ca, files), **files) as batch,
        gateway_for(model_server.target, tmp_path, probe=None, **files) as gateway,
        grpc.secure_channel(batch.target, write_certificate(trustme.CA(), files)) as channel,
    ):
        assert channel.unary_unary("/ringo.v1.PictureService/DescribeModel")(b"", timeout=LIMIT_S)
        served = ssl.get_server_certificate(("localhost", gateway.port), timeout=LIMIT_S)
        assert served == files["tls_certificate"].read_text()
        early = trustme.CA().issue_cert("localhost").cert_chain_pems[0]  # its key is late
        early.write_to_path(files["tls_certificate"])
        assert ssl.get_server_certificate(("localhost", gateway.port), timeout=LIMIT_S) == served
        wait_until(lambda: "The TLS files are not usable ([X509" in gateway.log.read_text(), "the cause in the log")
        ca.cert_pem.write_to_path(tmp_path / "ca")
        write_certificate(ca, files, not_after=datetime(2020, 1, 1, tzinfo=UTC))
        flags = ("--target", batch.target, "--ca", tmp_path / "ca", "--seeds", "1", "--out", tmp_path / "out")
        assert "its certificate has expired" in run_serving("paint", *flags).stderr


def test_gateway_answers_probes_and_preflights_only_without_the_token(gateway):
    rules = create_app(Settings()).url_map.iter_rules()
    urls = {rule.rule.replace("<path:filename>", "gallery.css") for rule in rules} | {"/nowhere"}
    assert {url: gateway.ask(url).status for url in urls} == {url: 200 if url in PROBES else 401 for url in urls}
    assert (gateway.ask("/generate", "POST").status, gateway.ask("/generate", "OPTIONS").status) == (401, 200)
    for wrong in ("Bearer wrong-token-of-16", TOKEN):
        reply = gateway.ask("/generate?seed=1", Authorization=wrong)
        assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    described = json.loads(gateway.ask("/openapi.json", Authorization=BEARER).body)["paths"]
    assert {path for path, methods in described.items() if "401" not in methods["get"]["responses"]} == set(PROBES)


def test_shared_caches_must_not_store_images_when_a_token_is_set(gateway):
    reply = gateway.ask(f"/generate?seed=1&version={VERSION}", Authorization=BEARER)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "image/png")
    assert reply.headers["Cache-Control"] == "private, max-age=31536000, immutable"


def ask_over_tls(gateway: Gateway, port: int, ca: Path, client: Path | None = None) -> Reply:
    context = ssl.create_default_context(cafile=ca)
    if client is not None:
        context.load_cert_chain(client)
    plain = socket.create_connection(("127.0.0.1", port), LIMIT_S)
    return gateway.ask("/livez", sock=context.wrap_socket(plain, server_hostname="localhost"))


def test_gateway_serves_tls_clients_with_a_certificate_of_the_ca_only(model_server, pem, tmp_path):
    settings = {"tls_client_ca": pem["ca"], **tls(pem["server"])}
    with gateway_for(model_server.target, tmp_path, probe=None, **settings) as gateway:
        for port in (gateway.port, gateway.metrics_port):
            assert ask_over_tls(gateway, port, pem["ca"], pem["client"]).status == 200
            for client in (None, pem["stranger"]):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    ask_over_tls(gateway, port, pem["ca"], client)
        words = {"target": f"localhost:{gateway.port}", "ca": pem["ca"], "seeds": 1, "out": tmp_path / "out"}
        words |= dict.fromkeys(("certificate", "key"), pem["client"])
        done = run_serving("paint", *(f"--{name}={text}" for name, text in words.items()))
        assert "it speaks TLS, but not gRPC" in done.stderr


@pytest.mark.parametrize(("path", "beginning"), [("/metrics", b"# HELP"), ("/livez", b"alive"), ("/readyz", b"ready")])
def test_metrics_port_serves_metrics_and_probes_without_a_token(gateway, batch, path, beginning):
    assert gateway.ask(path, port=gateway.metrics_port).body.startswith(beginning)
    for port in (gateway.metrics_port, batch.metrics_port):
        head = gateway.ask(path, "HEAD", port=port, Accept="application/openmetrics-text; version=x")
        assert (head.status, int(head.headers["Content-Length"]) > 0) == (200, True)
