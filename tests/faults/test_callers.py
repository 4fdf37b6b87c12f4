"""Callers who are slow, silent, broken or far too many: whoever asks in a plain way is answered all the same."""

import http.client
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import BinaryIO

import pytest
import trustme

from serving.gateway.worker import (
    HEAD_TIMEOUT_S,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_LINGERING,
    MAX_UNSENT_BYTES,
    OWN_FILES,
    SEND_TIMEOUT_S,
)
from tests.conftest import LIMIT_S, wait_until
from tests.faults.load import clients_asking, percentile
from tests.faults.processes import connections, open_files, resident_kb
from tests.gateway_process import Gateway, gateway_for

GET = b"GET /generate?seed=1 HTTP/1.1\r\nHost: ringo\r\n"
PICTURE = b"GET /generate?seed=3&size=512 HTTP/1.1\r\nHost: ringo\r\n\r\n"  # 84 kB
SHEET = b"GET /grid?seeds=0-3&columns=2&size=512 HTTP/1.1\r\nHost: ringo\r\n\r\n"  # 317 kB
ANSWERED_WITHIN_S = 1.0
ROUNDS = 10  # of what depends on who wakes first
MANY = 300  # nearly four times the threads of a worker


@pytest.fixture(scope="module")
def gateway(model_server, tmp_path_factory):
    with gateway_for(model_server.target, tmp_path_factory.mktemp("gateway")) as gateway:
        gateway.ask("/grid?seeds=0-3&columns=2&size=512")  # is kept from now on
        yield gateway


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def tls_gateway(model_server, authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls_gateway")
    papers = authority.issue_cert("localhost")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    key.write_bytes(papers.private_key_pem.bytes())
    certificate.write_bytes(b"".join(pem.bytes() for pem in papers.cert_chain_pems))
    with gateway_for(model_server.target, folder, tls_certificate=certificate, tls_key=key) as gateway:
        yield gateway


def connect(gateway: Gateway, says: bytes = b"") -> socket.socket:
    caller = socket.socket()
    # So that the system doesn't read in its owner's place, and holds little for him: as on a network, where a packet
    # has 1,500 bytes and not 64 KiB.
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    caller.settimeout(LIMIT_S)
    caller.connect(("127.0.0.1", gateway.port))
    caller.sendall(says)
    return caller


@contextmanager
def crowd(gateway: Gateway, says: bytes, count: int = MANY) -> Iterator[list[socket.socket]]:
    """Hold `count` connections that say `says`, and then nothing, while the `with` block lasts."""
    with ExitStack() as callers:
        yield [callers.enter_context(connect(gateway, says)) for _ in range(count)]


def check_others_are_answered(gateway: Gateway, meanwhile: Callable[[int], None] = lambda number: None) -> None:
    """Ask 200 times, with new connections now and then, calling `meanwhile` before each fifth: all answered, soon."""
    number = 0
    with clients_asking(gateway.port, 4, lambda n: f"/generate?seed={n}") as load:
        while len(load.outcomes) < 200:
            meanwhile(number)
            number += 1
            seen = len(load.outcomes)
            wait_until(lambda: len(load.outcomes) > seen, "an answer")  # noqa: B023 (is called here)
    assert not load.failed, load.failed[0]
    assert percentile(load.outcomes, 100) < ANSWERED_WITHIN_S
    for _ in range(10):
        assert gateway.ask("/livez").status == 200


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"G",
        GET,
        GET + b"\r\n" + GET,
        b"\r\n\r\n" + GET,
        b"POST /generate HTTP/1.1\r\nHost: ringo\r\nContent-Length: 1000\r\n\r\n",
        b"\x16\x03\x01",
        b"GET /livez HTTP/1.0\r\n\r\n",  # and never closes
        SHEET,  # and never reads it
        b"GET /generate?seed=3&size=320 HTTP/1.1\r\nHost: ringo\r\n\r\n" * 2,  # 40 kB each, where the system takes 51
    ],
    ids=[
        "silent",
        "one-byte",
        "half-a-head",
        "a-head-and-a-half",
        "half-a-head-after-empty-lines",
        "no-body",
        "tls",
        "not-closing",
        "not-reading",
        "not-reading-on",
    ],
)
def test_three_hundred_callers_who_stop_short_are_in_nobodys_way(gateway, says):
    with crowd(gateway, says):
        check_others_are_answered(gateway)


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "half-a-hello"])
def test_with_tls_three_hundred_who_have_yet_to_say_hello_are_in_nobodys_way(tls_gateway, trusting, says):
    with (
        crowd(tls_gateway, says),
        closing(http.client.HTTPSConnection("localhost", tls_gateway.port, timeout=LIMIT_S, context=trusting)) as plain,
    ):
        began_s = time.monotonic()
        for seed in range(20):
            plain.request("GET", f"/generate?seed={seed}")
            response = plain.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True)
            if seed % 2:
                plain.close()  # and say hello again
        assert time.monotonic() - began_s < 5 * ANSWERED_WITHIN_S


def test_callers_who_send_a_byte_at_a_time_are_in_nobodys_way(gateway):
    head = GET + b"X-Slow: " + b"x" * 100
    with crowd(gateway, b"") as callers:

        def one_byte(number: int) -> None:
            for caller in callers:
                caller.send(head[number % len(head) :][:1])

        check_others_are_answered(gateway, one_byte)


@pytest.mark.chaos
def test_half_a_head_ends_when_its_time_is_up(gateway):
    with connect(gateway, GET) as caller, pytest.raises(ConnectionResetError):
        caller.recv(1)


@pytest.mark.chaos
def test_an_answer_that_nobody_reads_ends_when_its_time_is_up(gateway):
    before = open_files(gateway.worker())
    with crowd(gateway, SHEET, count=10):
        wait_until(lambda: open_files(gateway.worker()) >= before + 10, "the connections to be taken")
        wait_until(lambda: open_files(gateway.worker()) <= before, "the connections to be closed", SEND_TIMEOUT_S + 5)


def read_answer(answers: BinaryIO) -> bytes:
    """Return the body of the next answer."""
    assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
    length = int(http.client.parse_headers(answers)["Content-Length"])
    body = answers.read(length)
    assert len(body) == length
    return body


def test_who_reads_late_and_slowly_gets_every_byte_of_all_he_has_asked_for(gateway):
    sheet = gateway.ask("/grid?seeds=0-3&columns=2&size=512").body
    with connect(gateway, SHEET + PICTURE + SHEET) as caller, caller.makefile("rb") as answers:
        check_others_are_answered(gateway)
        assert read_answer(answers) == sheet
        assert read_answer(answers) == gateway.ask("/generate?seed=3&size=512").body
        assert read_answer(answers) == sheet


def test_with_tls_those_who_do_not_read_are_in_nobodys_way_and_who_reads_late_gets_every_byte(tls_gateway, trusting):
    with ExitStack() as callers:

        def ask() -> BinaryIO:
            caller = trusting.wrap_socket(callers.enter_context(connect(tls_gateway)), server_hostname="localhost")
            callers.enter_context(caller).sendall(SHEET)
            return callers.enter_context(caller.makefile("rb"))

        *_, late, soon = [ask() for _ in range(100)]  # more than the threads of a worker
        began_s = time.monotonic()
        sheet = read_answer(soon)
        assert time.monotonic() - began_s < ANSWERED_WITHIN_S
        assert read_answer(late) == sheet


def test_of_more_than_may_be_unsent_those_who_wait_longest_get_nothing_more(gateway):
    before_kb = resident_kb(gateway.worker())
    with crowd(gateway, SHEET) as callers:
        with callers[-1].makefile("rb") as answers:
            assert read_answer(answers) == gateway.ask("/grid?seeds=0-3&columns=2&size=512").body
        with callers[0].makefile("rb") as answers, pytest.raises(ConnectionResetError):
            read_answer(answers)
        assert resident_kb(gateway.worker()) - before_kb < 2 * MAX_UNSENT_BYTES / 1024


def test_three_hundred_who_come_at_once_are_let_in_at_once(gateway):
    began_s = time.monotonic()
    with crowd(gateway, b""):
        assert time.monotonic() - began_s < ANSWERED_WITHIN_S  # after which the system would try again


def test_callers_who_come_together_are_spread_over_the_workers(model_server, tmp_path):
    fewest = 0
    with gateway_for(model_server.target, tmp_path, workers=2) as gateway:
        wait_until(lambda: len(gateway.workers()) == 2, "both workers")
        held = lambda: [connections(worker, gateway.port) for worker in gateway.workers()]  # noqa: E731
        for _ in range(ROUNDS):
            with crowd(gateway, b"", 16):
                wait_until(lambda: sum(held()) == 16, "all sixteen")
                fewest += min(held())
            wait_until(lambda: sum(held()) == 0, "none")
    assert fewest > 2 * ROUNDS  # of 8; 6 by measurement, and 0.4 where each takes all he can get


def test_a_head_in_pieces_is_a_request_like_any_other(gateway):
    with connect(gateway) as caller:
        for byte in GET + b"\r\n":
            caller.send(bytes([byte]))
        assert caller.recv(2**16).startswith(b"HTTP/1.1 200")


def test_heads_that_come_together_and_in_pieces_are_answered_each(gateway):
    with connect(gateway, GET + b"\r\n" + GET) as caller, caller.makefile("rb") as answers:
        first = read_answer(answers)
        caller.sendall(b"\r\n" + GET + b"\r\n")
        assert [first, read_answer(answers)] == [read_answer(answers)] * 2


def test_with_tls_heads_that_come_together_are_answered_each(tls_gateway, trusting):
    padded = GET + b"X: " + b"x" * (128 - len(GET) - len(b"X: \r\n\r\n")) + b"\r\n\r\n"
    count = 65  # 64 of 128 bytes are as much as gunicorn reads at a time; all are in one record
    with (
        connect(tls_gateway) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as caller,
        caller.makefile("rb") as answers,
    ):
        caller.sendall(padded * count)
        first = read_answer(answers)
        assert [read_answer(answers) for _ in range(count - 1)] == [first] * (count - 1)


def test_who_speaks_plain_http_where_there_is_tls_is_refused_at_once(tls_gateway):
    with connect(tls_gateway, GET + b"\r\n") as caller:
        caller.settimeout(HEAD_TIMEOUT_S / 2)
        with suppress(ConnectionResetError):
            assert caller.recv(1) == b""


def test_urgent_data_is_no_request_and_no_trouble(gateway):
    with connect(gateway, b"GET /li") as caller:
        caller.send(b"!", socket.MSG_OOB)
        assert caller.recv(1) == b""
    assert "Traceback" not in gateway.log.read_text()


def test_a_head_without_an_end_is_431(gateway):
    with connect(gateway, GET + b"X-Long: " + b"x" * MAX_HEAD_BYTES) as caller:
        answer = b"".join(iter(lambda: caller.recv(2**16), b""))
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in answer


def test_more_connections_than_there_may_be_leave_room_for_whoever_asks(gateway):
    before = open_files(gateway.worker())
    if not files_for(MAX_CONNECTIONS + 300):
        pytest.skip("This process may not have as many files as that takes.")
    with crowd(gateway, b"", count=MAX_CONNECTIONS + 200):
        check_others_are_answered(gateway)
        assert open_files(gateway.worker()) < MAX_CONNECTIONS + 100
    wait_until(lambda: open_files(gateway.worker()) <= before + 10, "the connections to be closed")


def test_where_all_connections_have_answers_that_nobody_reads_there_is_room_all_the_same(model_server, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OWN_FILES + MAX_LINGERING + 100, hard))  # which the gateway inherits
    try:
        with gateway_for(model_server.target, tmp_path) as gateway:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with crowd(gateway, PICTURE, count=150):  # 13 MB: fewer than may be unsent
                check_others_are_answered(gateway)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def files_for(count: int) -> bool:
    """Allow this process `count` open files, if that is to be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        if hard != resource.RLIM_INFINITY and hard < count:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return True


def test_where_file_descriptors_are_short_there_is_room_all_the_same(model_server, tmp_path):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with gateway_for(model_server.target, tmp_path) as gateway:
        assert gateway.ask("/generate?seed=1").status == 200
        worker = int(gateway.worker().name)
        # Below what it has decided to hold: so that accept() fails, too.
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (open_files(gateway.worker()) + 60, hard))
        with crowd(gateway, b""):
            check_others_are_answered(gateway)
        assert int(gateway.worker().name) == worker


def test_a_caller_who_breaks_off_breaks_nothing(gateway):
    ended = threading.Event()

    def break_off() -> None:
        while not ended.is_set():
            with connect(gateway, SHEET) as caller:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST instead of FIN
                caller.recv(100)

    threads = [threading.Thread(target=break_off) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        check_others_are_answered(gateway)
    finally:
        ended.set()
        for thread in threads:
            thread.join(LIMIT_S)
    assert "Traceback" not in gateway.log.read_text()
