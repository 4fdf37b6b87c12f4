"""The gateway while the model server is dead, hangs, is slow, is one of several, or changes its versions."""

import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from socketserver import BaseRequestHandler, UDPServer
from threading import Thread

import pytest

from tests.conftest import wait_until
from tests.fake_model_server import FakeModelServer, answer, rendering_other_bytes
from tests.faults.load import Load, Outcome, put_load
from tests.faults.processes import BUNDLED_MODEL, ModelServer
from tests.gateway_process import gateway_for
from tests.hosted_model_server import publish, save_model, withdraw

NOTICED_S = 2.5  # 1 s between two refreshes, 1 s until one fails, and half a second for a busy machine
REFUSED_WITHIN_S = 1.0
BACK_WITHIN_S = 5.0
CLIENTS = 16
SWAPS = 5
NAME_ERROR, A_RECORD = 3, 1  # of DNS


def seeds(number: int) -> str:
    return f"/generate?seed={number}"


@pytest.mark.parametrize("models", [None, pytest.param(BUNDLED_MODEL, marks=pytest.mark.chaos)])
def test_requests_get_503_at_once_when_the_model_server_is_dead(tmp_path, models):
    with (
        ModelServer(models) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, 16, seeds, per_second=50) as load,
    ):
        load.wait_for_images(50)
        server.kill()
        wait_until(lambda: len(load.shed) > 50, "refusals")
        time.sleep(NOTICED_S)
        server.start()
        back_s = time.monotonic()
        load.wait_for_images(250)
    assert {outcome.status for outcome in load.outcomes} == {200, 503}, load.failed[-1]
    headers = {(outcome.headers["Content-Type"], outcome.headers["Retry-After"]) for outcome in load.shed}
    assert headers == {("application/problem+json", "1")}
    assert max(outcome.took_s for outcome in load.shed) < REFUSED_WITHIN_S
    assert max(outcome.ended_s for outcome in load.shed) < back_s + BACK_WITHIN_S
    assert "Traceback" not in gateway.log.read_text()


def test_later_requests_get_503_at_once_when_the_model_server_hangs(tmp_path):
    with ModelServer() as server, gateway_for(server.target, tmp_path, predict_timeout_s=3) as gateway:
        cached = gateway.ask("/generate?seed=1")
        server.process.send_signal(signal.SIGSTOP)
        hung_s = time.monotonic()
        with put_load(gateway.port, 8, lambda number: seeds(number + 100)) as load:
            wait_until(lambda: len(load.shed) > 50, "refusals")
            assert gateway.ask("/generate?seed=1").body == cached.body
            assert gateway.ask("/generate?seed=1", If_None_Match=cached.headers["ETag"]).status == 304
            wait_until(lambda: any(outcome.status == 504 for outcome in load.outcomes), "the first deadline")
            server.process.send_signal(signal.SIGCONT)
            load.wait_for_images(50, limit_s=BACK_WITHIN_S)
    assert {outcome.status for outcome in load.failed} == {503, 504}
    assert max(outcome.took_s for outcome in load.shed) < REFUSED_WITHIN_S
    late = [outcome for outcome in load.outcomes if outcome.status == 504]
    assert all(outcome.started_s < hung_s + NOTICED_S and outcome.took_s < 3 + REFUSED_WITHIN_S for outcome in late)


def test_each_request_gets_504_at_its_own_deadline_when_the_model_is_slow(server, start_gateway):
    def reply_slowly(request):
        time.sleep(0.4)  # of each of the 8 calls for the golden images, which last 3.2 s
        return answer(request)

    def check_eight_requests(url: str) -> None:
        began_s = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            assert {reply.status for reply in pool.map(gateway.ask, [url] * 8)} == {504}
        assert time.monotonic() - began_s < 2 + REFUSED_WITHIN_S

    server.reply = reply_slowly
    gateway = start_gateway(server.target, predict_timeout_s=2, probe="/livez")
    check_eight_requests("/generate?seed=1")  # they wait for the golden images
    wait_until(lambda: gateway.ask("/generate?seed=1").status == 200, "the golden images")
    with server.holding():
        check_eight_requests("/generate?seed=7")  # they wait for one call
    with ThreadPoolExecutor(2) as pool, server.holding():
        first = pool.submit(gateway.ask, "/generate?seed=8")
        time.sleep(1)
        second = pool.submit(gateway.ask, "/generate?seed=8")  # begins again after the first one's deadline
        assert first.result().status == 504
    assert second.result().status == 200


def test_request_gets_504_at_its_deadline_when_a_check_took_part_of_it(server, start_gateway):
    def reply_slowly(request):
        time.sleep(0.2 if len(server.requests) <= 8 else 3)  # 1.6 s for the golden images
        return answer(request)

    server.reply = reply_slowly
    gateway, began_s = start_gateway(server.target, predict_timeout_s=2, probe="/livez"), time.monotonic()
    assert gateway.ask("/generate?seed=1").status == 504
    assert time.monotonic() - began_s < 2 + REFUSED_WITHIN_S


class BusyModelServer(FakeModelServer):
    """Reports its versions too slowly for clients while it is `busy`."""

    busy = False
    status_requests = 0

    def GetModelStatus(self, request, context):  # noqa: N802 (the service's own name)
        if self.busy:
            self.status_requests += 1
            time.sleep(1.2)  # the gateway waits for 1 s
        return super().GetModelStatus(request, context)


def test_no_request_fails_when_a_busy_model_server_reports_slowly(start_gateway):
    with BusyModelServer() as server, put_load(start_gateway(server.target, cache_mb=0).port, 2, seeds) as load:
        server.busy = True
        wait_until(lambda: server.status_requests >= 2, "refreshes that fail")
    assert not load.failed


@pytest.mark.parametrize(
    ("target", "reason", "logged"),
    [
        ("HTTP", "it speaks HTTP/1, not gRPC", "HTTP status 400"),
        ("SILENT", "it accepts connections, but sends nothing", "timed out before receiving SETTINGS"),
        ("nosuch.invalid:8500", "its name has no address", "errors resolving nosuch.invalid"),
        ("255.255.255.255:8500", "its address cannot be reached", "Network is unreachable"),
    ],
)
def test_503_and_log_say_at_once_why_there_is_no_connection(gateway, tmp_path, target, reason, logged):
    silent = socket.create_server(("127.0.0.1", 0))
    ports = {"HTTP": gateway.port, "SILENT": silent.getsockname()[1]}
    target = f"127.0.0.1:{ports[target]}" if target in ports else target
    with silent, gateway_for(target, tmp_path, log_format="json", probe="/livez") as unconnected:
        with put_load(unconnected.port, 4, seeds) as load:
            wait_until(lambda: len(load.outcomes) > 50, "refusals")
        detail = unconnected.ask("/generate?seed=1").problem["detail"]
        assert detail == f"The model server at {target} does not answer: {reason}."
        wait_until(lambda: logged in unconnected.log.read_text(), "gRPC's own text")
    assert {outcome.status for outcome in load.outcomes} == {503}
    assert max(outcome.took_s for outcome in load.outcomes) < NOTICED_S
    assert "Traceback" not in unconnected.log.read_text()


def test_each_etag_has_bytes_of_one_replica_when_connections_change(tmp_path):
    with (
        FakeModelServer(max_connection_age_s=1) as verified,
        FakeModelServer(port=verified.port, reply=rendering_other_bytes(), max_connection_age_s=1),
        gateway_for(verified.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, 8, newest) as load,
    ):
        load.wait_for_images(2_000, limit_s=200)
        # The kernel chooses the server of each connection, so the first few may all have the same one.
        wait_until(lambda: len(load.digests("ETag")) == 2 * 40, "each image of both servers", limit_s=200)
    assert {outcome.status for outcome in load.failed} <= {503}  # if a connection ends before its golden check
    assert {len(found) for found in load.digests("ETag").values()} == {1}


class Query(BaseRequestHandler):
    """Sends the response to one query, as in RFC 1035: 127.0.0.1 for every name, or no name while `is_away`."""

    def handle(self) -> None:
        query, connection = self.request
        end = query.index(b"\0", 12) + 5  # of the question: labels, type, class
        (kind,) = struct.unpack("!H", query[end - 4 : end - 2])
        has_answer = kind == A_RECORD and not self.server.is_away
        # Response, authoritative, recursion desired and available.
        flags = 0x8580 | (NAME_ERROR if self.server.is_away else 0)
        head = query[:2] + struct.pack("!HHHHH", flags, 1, int(has_answer), 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, A_RECORD, 1, 0, 4) + socket.inet_aton("127.0.0.1")
        connection.sendto(head + query[12:end] + (record if has_answer else b""), self.client_address)


@pytest.fixture
def names() -> Iterator[UDPServer]:
    """A DNS server for gRPC targets such as dns://127.0.0.1:PORT/NAME:PORT."""
    with UDPServer(("127.0.0.1", 0), Query) as server:
        server.is_away = False
        Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    "away_s", [20, *(pytest.param(s, marks=[pytest.mark.chaos, pytest.mark.timeout(s + 300)]) for s in (60, 150, 600))]
)
def test_first_image_comes_within_5_s_after_the_name_is_back(names, start_gateway, away_s):
    with ModelServer() as server:
        target = f"dns://127.0.0.1:{names.server_address[1]}/model-server.test:{server.port}"
        gateway = start_gateway(target, cache_mb=0)
        names.is_away = True
        server.kill()
        back_s = time.monotonic() + away_s
        wait_until(lambda: gateway.ask("/generate?seed=2").status == 503, "a refusal")
        wait_until(lambda: time.monotonic() > back_s, "the time away", limit_s=away_s + 10)
        server.start()
        names.is_away = False
        wait_until(lambda: gateway.ask("/generate?seed=3").status == 200, "an image", limit_s=BACK_WITHIN_S)


def newest(number: int) -> str:
    """Return one of 40 URLs without a version."""
    return f"/generate?seed={number % 40}"


def version_of(outcome: Outcome) -> int:
    return int(outcome.headers["Content-Location"].rpartition("version=")[2])


def check_no_request_failed(load: Load, versions: set[int]) -> None:
    assert not load.failed, (len(load.failed), load.failed[0])
    assert {version_of(outcome) for outcome in load.answered} == versions
    assert max(map(len, load.digests().values())) == 1


def test_no_request_fails_or_mixes_versions_in_a_hot_swap(server, start_gateway):
    with put_load(start_gateway(server.target, cache_mb=0).port, CLIENTS, newest) as load:
        for version in (4, 5, 6):
            load.wait_for_images(100)
            server.version = version
        wait_until(lambda: version_of(load.answered[-1]) == 6, "the last version")
        load.wait_for_images(100)
    check_no_request_failed(load, {3, 4, 5, 6})


@pytest.mark.chaos
def test_no_request_fails_when_versions_are_added_broken_and_removed(tmp_path):
    models, shades = tmp_path / "models", tmp_path / "shades"
    for shade in range(SWAPS + 1):
        save_model(shades / str(shade), 20 * shade)  # so that pixels of versions differ
    models.mkdir()
    publish(shades / "0", models, "1")
    with (
        ModelServer(models) as server,
        gateway_for(server.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, CLIENTS, newest) as load,
    ):
        for swap in range(1, SWAPS + 1):
            load.wait_for_images(200)
            broken = models / f"{10 * swap}"
            (models / ".aside").mkdir()
            (models / ".aside" / "saved_model.pb").write_bytes(b"no model")
            (models / ".aside").rename(broken)
            load.wait_for_images(200)
            shutil.rmtree(broken)
            publish(shades / str(swap), models, str(swap + 1))
            wait_until(lambda: version_of(load.answered[-1]) == swap + 1, "the next version")  # noqa: B023 (is called here)
        load.wait_for_images(200)
        withdraw(models, str(SWAPS + 1))
        wait_until(lambda: version_of(load.answered[-1]) == SWAPS, "the version before")
        load.wait_for_images(200)
        assert gateway.ask(f"/generate?seed=7&version={SWAPS + 1}").status == 404
    check_no_request_failed(load, set(range(1, SWAPS + 2)))
