"""ETags before inference, 304 without a model server, and one making of what many ask for."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import LIMIT_S, wait_until
from tests.fake_model_server import FakeModelServer, answer
from tests.gateway_process import Gateway, gateway_for

URLS = ["/generate?seed=42", "/generate?seed=42&size=32&format=webp", "/grid?seeds=1-5", "/morph?start=1&end=2"]
PINNED = [f"{url}&version=3" for url in URLS]
YEAR = "public, max-age=31536000, immutable"


@pytest.mark.parametrize("url", URLS + PINNED)
def test_the_etag_gives_304_with_the_headers_of_the_picture(gateway, url):
    whole = gateway.ask(url)
    held = gateway.ask(url, If_None_Match=whole.headers["ETag"])
    assert (held.status, held.body) == (304, b"")
    for name in ("ETag", "Cache-Control", "Content-Location", "Vary", "Ringo-Model-Version"):
        assert held.headers[name] == whole.headers[name]


@pytest.mark.parametrize("template", ["W/{}", '"other", {}', '{}, W/"another"', "*"])
def test_if_none_match_is_understood_as_rfc_9110_has_it(gateway, template):
    etag = gateway.ask(URLS[0]).headers["ETag"]
    assert gateway.ask(URLS[0], If_None_Match=template.format(etag)).status == 304


def test_star_does_not_match_an_unknown_version(gateway):
    assert gateway.ask(f"{URLS[0]}&version=99", If_None_Match="*").status == 404


@pytest.mark.parametrize("headers", [{"If_Match": '"other"'}, {"If_None_Match": '"other"'}])
def test_image_is_sent_when_the_etag_differs(gateway, headers):
    reply = gateway.ask(URLS[0], **headers)
    assert (reply.status, reply.headers["ETag"][:8]) == (200, '"proved-')


def test_all_that_changes_the_bytes_changes_the_etag(gateway):
    urls = [
        *("/generate?seed=1", "/generate?seed=2", "/generate?seed=1&size=16", "/generate?seed=1&format=webp"),
        *(
            "/generate?seed=1&format=jpeg",
            "/grid?seeds=1",
            "/grid?seeds=1&columns=1",
        ),
        *("/morph?start=1&end=2", "/morph?start=2&end=1", "/animation?start=1&end=2", "/morph?start=1&end=2&frames=9"),
    ]
    assert len({gateway.ask(url).headers["ETag"] for url in urls}) == len(urls)


def test_two_spellings_of_one_query_have_one_etag(gateway):
    etags = {gateway.ask(url).headers["ETag"] for url in ("/grid?seeds=1,2,3", "/grid?columns=4&seeds=1-3")}
    assert len(etags) == 1


@pytest.mark.parametrize(
    ("url", "cache_control"),
    [
        ("/generate?seed=42", "no-cache"),
        ("/generate?seed=42&version=3", YEAR),
        ("/generate", "no-store"),
        ("/generate?version=3", "no-store"),
    ],
)
def test_cache_control_follows_seed_and_version(gateway, url, cache_control):
    assert gateway.ask(url).headers["Cache-Control"] == cache_control


@pytest.mark.parametrize("url", [*URLS, "/generate", "/animation?start=1&end=2"])
def test_the_content_location_pins_all_and_gives_the_same_bytes_for_ever(gateway, url):
    whole = gateway.ask(url)
    pinned = gateway.ask(whole.headers["Content-Location"])
    assert (pinned.body, pinned.headers["ETag"]) == (whole.body, whole.headers["ETag"])
    assert pinned.headers["Cache-Control"] == YEAR
    assert pinned.headers["Vary"] is None


@pytest.mark.parametrize("url", URLS)
def test_head_has_the_headers_of_get(gateway, url):
    get, head = gateway.ask(url), gateway.ask(url, "HEAD")
    assert head.body == b""
    for name in ("Content-Length", "Content-Type", "ETag", "Cache-Control", "Content-Disposition"):
        assert head.headers[name] == get.headers[name]


def test_a_page_of_another_origin_may_ask_revalidate_and_read_the_headers(gateway):
    preflight = gateway.ask("/generate?seed=42", "OPTIONS", Origin="https://example.org")
    assert "If-None-Match" in preflight.headers["Access-Control-Allow-Headers"]
    for url in ("/generate?seed=42", "/generate?seed=x"):
        headers = gateway.ask(url, Origin="https://example.org").headers
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert {"ETag", "Ringo-Model-Version"} <= set(headers["Access-Control-Expose-Headers"].split(", "))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/generate?seed=42", "apple-42.png"),
        ("/generate?seed=42&format=webp", "apple-42.webp"),
        ("/grid", "apple-grid.png"),
        ("/animation?start=1&end=2&format=gif", "apple-animation.gif"),
    ],
)
def test_a_browser_saves_it_under_a_name_that_says_what_it_is(gateway, url, name):
    assert gateway.ask(url).headers["Content-Disposition"] == f"inline; filename={name}"


def at_once(gateway: Gateway, url: str, count: int) -> list[str]:
    """Return the digests of `count` answers to `url` that are asked for together."""
    gate = threading.Barrier(count)

    def ask(_: int) -> str:
        gate.wait(LIMIT_S)
        reply = gateway.ask(url)
        assert reply.status == 200
        return hashlib.sha256(reply.body).hexdigest()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


@pytest.mark.parametrize("cache_mb", [0, 16])
def test_concurrent_requests_for_one_picture_are_one_request_to_the_model(cache_mb, tmp_path):
    with (
        FakeModelServer() as server,
        gateway_for(server.target, tmp_path, cache_mb=cache_mb) as gateway,
        ThreadPoolExecutor(1) as pool,
    ):
        assert gateway.ask("/generate?seed=1").status == 200
        server.requests.clear()
        with server.holding():
            digests = pool.submit(at_once, gateway, "/generate?seed=1000", 16)
            wait_until(lambda: gateway.metric('ringo_pictures_total{source="model"}') == 17, "all requests to wait")
        assert len(set(digests.result(LIMIT_S))) == 1
        assert len(server.requests) == 1


def test_one_failure_is_the_answer_to_all_who_waited_and_is_not_kept(gateway, model_server, monkeypatch):
    monkeypatch.setattr(model_server, "reply", lambda request: answer(request, version=99))
    assert gateway.ask("/generate?seed=2000").status == 502
    monkeypatch.undo()
    assert gateway.ask("/generate?seed=2000").status == 200


@pytest.mark.parametrize(
    ("first", "second"),
    [("/generate?seed=3000", "/generate?seed=3000"), ("/grid?seeds=4000-4007", "/generate?seed=4003")],
)
def test_model_is_not_called_when_the_image_is_cached(gateway, model_server, first, second):
    gateway.ask(first)
    before = len(model_server.requests)
    assert gateway.ask(second).status == 200
    assert len(model_server.requests) == before


def test_with_the_cache_off_nothing_is_kept_and_the_bytes_are_the_same(gateway, model_server, tmp_path):
    with gateway_for(model_server.target, tmp_path, cache_mb=0) as bare:
        for url in URLS:
            before = bare.ask(url).body
            asked = len(model_server.requests)
            assert bare.ask(url).body == before == gateway.ask(url).body
            assert len(model_server.requests) > asked


def test_the_cache_stays_within_its_bytes(model_server, tmp_path):
    with gateway_for(model_server.target, tmp_path, cache_mb=1) as small:
        for seed in range(12):  # 12 answers of 120 to 250 kB
            small.ask(f"/generate?seed={seed}&size=1024")
        asked = small.metric('ringo_pictures_total{source="model"}')
        small.ask("/generate?seed=11&size=1024")
        assert small.metric('ringo_pictures_total{source="model"}') == asked  # the last is kept,
        small.ask("/generate?seed=0&size=1024")
        assert small.metric('ringo_pictures_total{source="model"}') == asked + 1  # the first made room


@pytest.fixture(scope="module")
def after_the_models_death(tmp_path_factory):
    """A gateway that has seen some pictures and whose model server is gone, and the ETags of the pictures."""
    with (
        FakeModelServer(version=3) as server,
        gateway_for(server.target, tmp_path_factory.mktemp("widow"), cache_mb=0) as gateway,
    ):
        etags = {url: gateway.ask(url).headers["ETag"] for url in URLS + PINNED}
        server.stop()
        yield gateway, etags


@pytest.mark.parametrize("url", URLS + PINNED)
def test_304_needs_no_model_server(after_the_models_death, url):
    gateway, etags = after_the_models_death
    assert gateway.ask(url, If_None_Match=etags[url]).status == 304


@pytest.mark.parametrize("url", URLS + PINNED)
def test_a_cold_picture_without_a_model_server_is_503(after_the_models_death, url):
    gateway, _ = after_the_models_death
    assert gateway.ask(url).status == 503


def test_a_retrained_model_of_the_same_version_has_another_etag_and_other_bytes(tmp_path):
    url = "/generate?seed=42&version=1"
    with FakeModelServer() as server, gateway_for(server.target, tmp_path) as gateway:
        before = gateway.ask(url)
        server.stop()
        with FakeModelServer(port=server.port, reply=retrained):
            wait_until(lambda: gateway.ask(url).headers["ETag"] != before.headers["ETag"], "the other model")
            after = gateway.ask(url)
    assert (after.status, after.body != before.body) == (200, True)
    assert after.headers["ETag"].startswith('"proved-')


def retrained(request):
    """Reply as another model would, under the number of the first."""
    response = answer(request, version=2)
    response.model_spec.version.value = 1
    return response
