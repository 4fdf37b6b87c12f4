"""ETags, Cache-Control and 304; the image cache, and shared renderings."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.fake_model_server import FakeModelServer, answer

URLS = ["/generate?seed=42", "/generate?seed=42&size=32&format=webp", "/grid?seeds=1-5", "/morph?start=1&end=2"]
YEAR = "public, max-age=31536000, immutable"


@pytest.mark.parametrize("url", [*URLS, f"{URLS[0]}&version=3"])
def test_etag_gives_304_with_the_headers_of_the_image(gateway, url):
    whole = gateway.ask(url)
    assert whole.headers["ETag"].startswith('"proved-')
    for template in ("{}", "W/{}", '"other", {}', '{}, W/"another"', "*"):
        held = gateway.ask(url, If_None_Match=template.format(whole.headers["ETag"]))
        assert (held.status, held.body) == (304, b"")
        for name in ("ETag", "Cache-Control", "Content-Location", "Vary", "Ringo-Model-Version"):
            assert held.headers[name] == whole.headers[name]
    for others in ({"If_Match": '"other"'}, {"If_None_Match": '"other"'}):
        assert gateway.ask(url, **others).body == whole.body


def test_etags_differ_when_the_bytes_differ(gateway):
    urls = [
        *("/generate?seed=1", "/generate?seed=2", "/generate?seed=1&size=16", "/generate?seed=1&format=webp"),
        *("/grid?seeds=1", "/grid?seeds=1&columns=1", "/morph?start=1&end=2", "/animation?start=1&end=2"),
    ]
    assert len({gateway.ask(url).headers["ETag"] for url in urls}) == len(urls)


@pytest.mark.parametrize(
    ("url", "cache_control", "permanent"),
    [
        *((url, "no-store", None) for url in ("/generate", "/generate?version=3", "/random.jpg?version=3")),
        *(
            (url, "no-cache", f"{permanent}&version=3")
            for url, permanent in {
                "/generate?seed=42": "/generate?seed=42&format=png",
                "/42.png": "/generate?seed=42&format=png",
                "/42.webp?size=128": "/generate?seed=42&size=128&format=webp",
                "/7.jpg": "/generate?seed=7&format=jpeg",
                "/generate?name=alice&format=webp": "/generate?seed=1579641300545110103&format=webp",
                "/name/a.png.webp": "/generate?seed=4576652394325073836&format=webp",
                "/name/a%2Fb%3Fc%26d.png": "/generate?seed=577646309837775770&format=png",
                "/animation?start=1&end=2": "/animation?start=1&end=2&format=webp",
                "/grid?seeds=1,2,3,9": "/grid?seeds=1-3,9&format=png",
                "/grid?seeds=7,42,100,101,102,5,5&columns=2": "/grid?seeds=7,42,100-102,5,5&columns=2&format=png",
                "/grid?seeds=0-15&columns=4": "/grid?format=png",
                "/morph?start=1&end=2&frames=8": "/morph?start=1&end=2&format=png",
                "/animation?start=1&end=1&frames=16&format=gif": "/animation?start=1&end=1&format=gif",
            }.items()
        ),
        ("/generate?version=3&seed=42&size=64", YEAR, "/generate?seed=42&size=64&format=png&version=3"),
        ("/name/alice.png?version=3", YEAR, "/generate?seed=1579641300545110103&format=png&version=3"),
    ],
)
def test_content_location_is_the_permanent_url_of_the_same_bytes(gateway, url, cache_control, permanent):
    whole = gateway.ask(url)
    assert whole.headers["Cache-Control"] == cache_control
    location = whole.headers["Content-Location"]
    assert permanent in (location, None)
    pinned = gateway.ask(location)
    assert (pinned.body, pinned.headers["ETag"]) == (whole.body, whole.headers["ETag"])
    assert (pinned.headers["Cache-Control"], pinned.headers["Vary"]) == (YEAR, None)


def test_page_of_another_origin_may_revalidate_and_read_the_headers(gateway):
    preflight = gateway.ask("/generate?seed=42", "OPTIONS", Origin="https://example.org")
    assert "If-None-Match" in preflight.headers["Access-Control-Allow-Headers"]
    for url in ("/generate?seed=42", "/generate?seed=x"):
        headers = gateway.ask(url, Origin="https://example.org").headers
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert {"ETag", "Ringo-Model-Version"} <= set(headers["Access-Control-Expose-Headers"].split(", "))


def test_model_is_called_once_when_requests_for_an_image_are_concurrent(model_server, start_gateway):
    uncached = start_gateway(model_server.target, cache_mb=0)
    called, rendered = len(model_server.requests), uncached.rendered()
    with ThreadPoolExecutor(16) as pool, model_server.holding():
        replies = [pool.submit(uncached.ask, "/generate?seed=1000") for _ in range(16)]
        wait_until(lambda: uncached.rendered() == rendered + 16, "all requests to wait")
    assert len({reply.result(LIMIT_S).body for reply in replies}) == 1
    assert len(model_server.requests) == called + 1


def test_model_is_not_called_when_the_image_is_cached(gateway, model_server):
    gateway.ask("/grid?seeds=4000-4007")
    before = len(model_server.requests)
    assert gateway.ask("/generate?seed=4003").status == 200
    assert len(model_server.requests) == before


def test_cache_drops_the_oldest_images_when_it_is_full(model_server, start_gateway):
    small = start_gateway(model_server.target, cache_mb=1)
    for seed in range(12):  # 120 to 250 kB each
        small.ask(f"/generate?seed={seed}&size=1024")
    rendered = small.rendered()
    small.ask("/generate?seed=11&size=1024")
    assert small.rendered() == rendered
    small.ask("/generate?seed=0&size=1024")
    assert small.rendered() == rendered + 1


def test_304_needs_no_model_server(server, start_gateway):
    gateway = start_gateway(server.target, cache_mb=0)
    etags = {url: gateway.ask(url).headers["ETag"] for url in URLS}
    server.stop()
    for url, etag in etags.items():
        assert gateway.ask(url, If_None_Match=etag).status == 304
        assert gateway.ask(url).status == 503


def reply_of_another_model(request, number=VERSION + 1):
    """Return images of another model, here of version `number`, as those of VERSION."""
    response = answer(request, version=number)
    response.model_spec.version.value = VERSION
    return response


def test_equal_etags_have_equal_bytes_when_images_depend_on_their_batch(server, start_gateway):
    def reply_by_rows(request):
        (rows,) = request.inputs.values()
        return reply_of_another_model(request, rows.tensor_shape.dim[0].size)

    server.reply = reply_by_rows
    gateways = [start_gateway(server.target) for _ in range(2)]
    gateways[0].ask("/grid?seeds=0-3")
    assert len({(image.headers["ETag"], image.body) for image in (g.ask("/generate?seed=1") for g in gateways)}) == 1


def test_etag_and_bytes_differ_when_a_version_is_of_another_model(server, start_gateway):
    url, gateway = f"/generate?seed=42&version={VERSION}", start_gateway(server.target)
    before = gateway.ask(url)
    server.stop()
    with FakeModelServer(version=VERSION, port=server.port, reply=reply_of_another_model):
        wait_until(lambda: gateway.ask(url).headers["ETag"] != before.headers["ETag"], "the other model")
        after = gateway.ask(url)
    assert (after.status, after.body != before.body) == (200, True)
    assert after.headers["ETag"].startswith('"proved-')
