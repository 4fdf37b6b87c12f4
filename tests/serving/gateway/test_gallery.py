"""The page at / in Debian's chromium, without errors or foreign requests."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from serving.rendering.query import EXAMPLE_SEEDS, MAX_SEED
from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.faults.processes import needs_nginx, proxy_before

CHROMIUM = shutil.which("chromium")
WIDE = {"viewport": {"width": 1280, "height": 720}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH: apt-get install chromium")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=CHROMIUM) as browser:
        yield browser


@contextmanager
def visiting(browser, gateway, *, faults=(), **view):
    """Yield a blank page in a new context with the options `view`.

    Afterwards, fail on requests to other hosts and on errors in the console that `faults` does not name. Chromium
    writes violations of the Content-Security-Policy to the console.
    """
    messages, errors, urls = [], [], []
    with browser.new_context(base_url=f"http://127.0.0.1:{gateway.port}", **(view or WIDE)) as context:
        context.set_default_timeout(1000 * LIMIT_S)
        context.on("console", lambda message: messages.append((message.type, message.text)))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on("request", lambda request: urls.append(request.url))
        yield context.new_page()
    complaints = [text for kind, text in messages if kind in ("error", "warning")]
    assert [text for text in complaints if not any(fault in text for fault in faults)] == errors == []
    assert [url for url in urls if urlsplit(url).hostname != "127.0.0.1"] == []


# One context for most tests: a new one takes half a second, and loads all images again.
@pytest.fixture(scope="module")
def context(browser, gateway):
    with visiting(browser, gateway) as page:
        yield page.context


# A page for each test: a step back in the history that the previous test began would abort its first `goto`.
@pytest.fixture
def page(context):
    with context.new_page() as page:
        yield page


def tile(page, seed):
    return page.locator("#wall").get_by_role("link", name=f"apple, seed {seed}", exact=True)


def wait_for_pictures(page):
    """Wait until all visible images are loaded, and the morph is drawn."""
    page.wait_for_function(
        """() => document.querySelector("#morph").ariaBusy === "false" && document.querySelector("#wall img") &&
        [...document.querySelectorAll("#wall img")].every((image) => {
            const { top, bottom } = image.getBoundingClientRect();
            return bottom < 0 || top > innerHeight || image.complete && image.naturalWidth > 0;
        })""",
        polling=50,  # ms; playwright's own choice, each frame, keeps a core busy
    )


def enter(page, name, text):
    """Type `text` into the field `name`, and Enter; return the field."""
    field = page.get_by_role("textbox", name=name)
    field.fill(text)
    field.press("Enter")
    return field


def test_page_loads_its_images_from_permanent_urls(page):
    responses = []
    page.on("response", lambda response: responses.append(response))
    page.goto("/")
    wait_for_pictures(page)
    images = [response for response in responses if response.request.resource_type == "image"]
    assert images
    for image in images:
        url = urlsplit(image.url)
        assert image.headers["content-location"] == f"{url.path}?{url.query}"
        assert image.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_page_loads_more_seeds_on_scrolling_and_removes_those_out_of_sight(page):
    page.goto("/")
    last = page.locator("#wall .label").last
    for _ in range(5):
        before = int(last.text_content())
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        wait_until(lambda: int(last.text_content()) > before, "more seeds")  # noqa: B023 (is called here)
        assert page.locator("#wall li").count() <= 600  # on any screen: ten parts
    assert page.locator("#wall img[alt$=' 0']").count() == 0
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_selector("#wall img[alt$=' 0']", state="attached")
    wait_for_pictures(page)


def test_typed_seed_is_shown_with_file_and_snippets_of_one_size_and_format(page, gateway):
    page.goto("/")
    page.get_by_role("textbox", name="Seed").fill(str(MAX_SEED))
    page.get_by_role("button", name="Show", exact=True).click()
    view = page.get_by_role("dialog", name=f"Seed {MAX_SEED}")
    expect(view.get_by_role("img", name=f"Seed {MAX_SEED}")).to_be_visible()
    assert urlsplit(page.url).query == f"seed={MAX_SEED}"
    for size, file_format, path in (
        ("480", "PNG", f"/generate?seed={MAX_SEED}&size=480&format=png&version={VERSION}"),
        ("as rendered", "WebP", f"/generate?seed={MAX_SEED}&format=webp&version={VERSION}"),
        ("128", "JPEG", f"/generate?seed={MAX_SEED}&format=jpeg&version={VERSION}&size=128"),
    ):
        view.get_by_label("Size").select_option(size)
        view.get_by_label("Format").select_option(file_format)
        link, extension = f"http://127.0.0.1:{gateway.port}{path}", file_format.lower()
        expect(view.get_by_role("img")).to_have_attribute("src", path)
        expect(view.get_by_label("Link", exact=True)).to_have_value(link)
        expect(view.get_by_label("curl", exact=True)).to_have_value(f"curl '{link}' -o {MAX_SEED}.{extension}")
        expect(view.get_by_label("Markdown", exact=True)).to_have_value(f"![apple, seed {MAX_SEED}]({link})")
        html = f'<img src="{link.replace("&", "&amp;")}" alt="apple, seed {MAX_SEED}">'
        expect(view.get_by_label("HTML", exact=True)).to_have_value(html)
        with page.expect_download() as downloading:
            view.get_by_role("link", name="Download").click()
        assert downloading.value.suggested_filename == f"apple-{MAX_SEED}.{extension}"
        assert Path(downloading.value.path()).read_bytes() == gateway.ask(path).body


def test_typed_name_is_shown_by_its_seed_alone(browser, gateway):
    with visiting(browser, gateway, faults=["400"]) as page:
        page.goto("/")
        field = enter(page, "Name", "é" * 129)
        wait_until(lambda: "has 258 bytes" in field.evaluate("field => field.validationMessage"), "a refusal")
        with page.expect_request("**/generate?name=*&size=16"):  # the page's version may be gone
            enter(page, "Name", "alice@example.com")
        expect(page.get_by_role("dialog", name="Seed 9207270844379105631")).to_be_visible()
        assert urlsplit(page.url).query == "seed=9207270844379105631"
        assert "alice" not in page.get_by_label("Link", exact=True).input_value()


def test_only_the_last_answer_is_shown_when_a_name_is_entered_twice(page):
    routes = []
    page.goto("/")
    page.route("**/generate?name=*", lambda route: routes.append(route), times=2)
    page.get_by_role("textbox", name="Name").press_sequentially("alice\n\n")
    wait_until(lambda: page.title() and len(routes) == 2, "two requests")  # playwright calls back while it waits
    for seed in ("2", "1"):
        routes.pop().fulfill(headers={"Ringo-Seed": seed})
    expect(page.get_by_role("heading", name="Seed 2", exact=True)).to_be_visible()
    page.get_by_role("button", name="Close").click()
    page.wait_for_url("/")


def test_name_can_be_entered_again_when_a_proxy_answered(browser, gateway):
    with visiting(browser, gateway, faults=["502"]) as page:
        page.goto("/")
        page.route("**/generate?name=*", lambda route: route.fulfill(status=502, body="<html>"), times=1)
        field = enter(page, "Name", "alice")
        expect(field).to_have_js_property("validationMessage", "The gateway does not answer; try again later.")
        field.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("text", ["4.2", str(MAX_SEED + 1)])
def test_seed_is_refused_in_a_sentence_when_it_is_invalid(page, path, text):
    page.goto(path)
    field = enter(page, "Seed", text)
    assert field.evaluate("field => field.validationMessage") == f"A seed is a whole number from 0 to {MAX_SEED}."
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_slider_draws_the_frames_of_a_morph_that_is_loaded_once(page):
    requests = []
    page.on("request", lambda request: requests.append(request.url) if "/morph?" in request.url else None)
    page.goto("/")
    wait_for_pictures(page)
    slider = page.get_by_role("slider")
    box = slider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    frames = []
    for part in (0.0, 0.3, 0.6, 1.0):
        page.mouse.move(box["x"] + part * box["width"], y)
        frames.append(page.evaluate("document.querySelector('#morph').toDataURL()"))
    page.mouse.up()
    assert len(set(frames)) == 4
    assert slider.get_attribute("aria-valuetext") == "100 % of the way from seed {} to seed {}".format(*EXAMPLE_SEEDS)
    assert len(requests) == 1


def test_ends_of_the_morph_are_typed_or_chosen_on_the_wall(page):
    page.goto("/")
    enter(page, "From", "5")
    page.wait_for_url(f"/?start=5&end={EXAMPLE_SEEDS[1]}")
    tile(page, 8).click()
    page.get_by_role("button", name="Morph to here").click()
    expect(page.get_by_role("textbox", name="To")).to_have_value("8")
    expect(page.get_by_role("slider")).to_be_focused()
    expect(page.get_by_role("img", name="Morph from seed 5 to seed 8")).to_have_attribute("aria-busy", "false")
    page.wait_for_url("/?start=5&end=8")
    page.reload()
    expect(page.get_by_role("textbox", name="From")).to_have_value("5")


def test_page_works_with_the_keyboard_alone(page):
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the wall")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(tile(page, 0)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(tile(page, 11)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Seed 11")).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="Seed 12")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(tile(page, 12)).to_be_focused()


def test_url_leads_to_a_seed_and_follows_back_and_forward(page):
    page.goto("/?seed=9007199254740993")  # 2^53 + 1: too large for a number of JavaScript
    expect(page.get_by_role("heading", name="Seed 9007199254740993")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    page.wait_for_url("/")
    tile(page, 4).click()
    page.wait_for_url("/?seed=4")
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.go_forward()
    expect(page.get_by_role("heading", name="Seed 4")).to_be_visible()


@pytest.mark.parametrize(("press", "release"), [(-9, -9), (-9, 9), (9, -9), (9, 9)])
def test_view_closes_only_when_press_and_release_are_outside(page, press, release):
    page.goto("/?seed=4")
    page.drag_and_drop("dialog", "dialog", source_position={"x": press, "y": 9}, target_position={"x": release, "y": 9})
    expect(page.get_by_role("dialog")).to_be_visible(visible=not press == release == -9)


@pytest.mark.parametrize(("url", "is_open"), [("/#wall", True), ("/?seed=4#wall", False)])
def test_view_opens_or_closes_once_on_a_double_click(page, url, is_open):
    page.goto(url)
    page.mouse.dblclick(100, 360)
    expect(page.get_by_role("dialog")).to_be_visible(visible=is_open)


@pytest.mark.parametrize("view", [WIDE, PHONE], ids=["wide", "narrow"])
def test_axe_finds_no_accessibility_problem(browser, gateway, view):
    with visiting(browser, gateway, **view, reduced_motion="reduce") as page:
        for url in ("/docs", "/", "/?seed=60"):
            page.goto(url)
            if url != "/docs":
                wait_for_pictures(page)
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= view["viewport"]["width"]  # nothing is clipped
            for color_scheme in ("light", "dark"):
                page.emulate_media(color_scheme=color_scheme)
                found = Axe().run(page).response["violations"]
                named = [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found]
                assert named == [], (url, color_scheme)


def test_docs_show_image_and_command_of_the_chosen_options(page, gateway):
    page.goto("/docs")
    page.get_by_role("textbox", name="Seed").fill("7")
    page.get_by_role("combobox", name="Size").select_option("64")
    page.get_by_role("combobox", name="Format").select_option("webp")
    url = f"http://127.0.0.1:{gateway.port}/generate?seed=7&size=64&format=webp"
    expect(page.get_by_role("img")).to_have_js_property("src", url)
    expect(page.get_by_label("Command")).to_have_text(f"curl '{url}' -o image.webp")
    expect(page.get_by_role("img")).to_have_js_property("naturalWidth", 64)


@needs_nginx
@pytest.mark.parametrize("passed", ["http://gateway", "http://gateway/"], ids=["whole-path", "without-prefix"])
def test_everything_follows_the_prefix_when_a_proxy_serves_a_sub_path(
    browser, model_server, start_gateway, tmp_path, passed
):
    gateway = start_gateway(model_server.target, path_prefix="/ringo")
    places = {"location / {": "location /ringo/ {", "proxy_pass http://gateway;": f"proxy_pass {passed};"}
    with proxy_before(gateway.port, tmp_path, places) as proxy, visiting(browser, proxy) as page:
        paths = []
        page.on("request", lambda request: paths.append(urlsplit(request.url).path))
        page.goto("/ringo/?seed=5")
        wait_for_pictures(page)
        page.get_by_role("button", name="Close").click()
        enter(page, "Name", "alice")
        expect(page.get_by_role("dialog").get_by_role("img")).to_have_js_property("complete", True)
        link = page.get_by_label("Link", exact=True).input_value()
        assert link.startswith(f"http://127.0.0.1:{proxy.port}/ringo/generate?")
        page.goto("/ringo/docs")
        page.get_by_role("link", name="openapi.json", exact=True).click()
        assert {path for path in paths if not path.startswith("/ringo/")} == set()
        assert gateway.ask("/ringo").status == 200  # a redirect would name the client's Host
        public = replace(gateway, port=proxy.port)
        image = public.ask("/ringo/42.png")
        assert image.headers["Content-Location"] == f"/ringo/generate?seed=42&format=png&version={VERSION}"
        assert public.ask(image.headers["Content-Location"]).body == image.body
        assert public.ask("/ringo/grid?seeds=x").problem["instance"] == "/ringo/grid"
        assert json.loads(public.ask("/ringo/openapi.json").body)["servers"] == [{"url": "/ringo"}]


def test_page_waits_for_a_model_when_none_is_ready(browser, server, start_gateway):
    server.state, server.model_name = "LOADING", "tabby-cats"
    gateway = start_gateway(server.target, model_name="tabby-cats", probe="/livez")
    with visiting(browser, gateway, faults=["503"]) as page:
        page.goto("/?seed=42")
        page.get_by_role("button", name="Close").click()
        expect(page.get_by_role("status").filter(has_text="The model is not ready")).to_be_visible()
        server.state = "AVAILABLE"
        wait_for_pictures(page)
        expect(page.get_by_text("The model is not ready")).to_be_hidden()
        assert page.title().startswith("tabby cats")
        assert "apple" not in page.content()


def test_wall_changes_its_version_when_another_one_is_loaded(browser, server, start_gateway):
    with visiting(browser, start_gateway(server.target, cache_mb=0), faults=["404"]) as page:
        page.goto("/")
        wait_for_pictures(page)
        server.version = VERSION + 1
        page.evaluate("scrollTo(0, 3000)")
        older = page.locator(f"#wall img:not([src$='={VERSION + 1}'])")
        wait_until(lambda: older.count() == 0, "images of the other version")
        wait_for_pictures(page)


@pytest.mark.parametrize("retry_after", ["Wed, 21 Oct 2037 07:28:00 GMT", "1000000000"], ids=["date", "long"])
def test_page_pauses_before_a_retry_when_retry_after_is_no_short_time(browser, gateway, retry_after):
    with visiting(browser, gateway, faults=["503"]) as page:
        page.add_init_script("setTimeout = (_, pauseMs) => console.info(pauseMs)")
        page.route("**/generate*", lambda route: route.fulfill(status=503, headers={"Retry-After": retry_after}))
        with page.expect_console_message(lambda message: message.type == "info") as message:
            page.goto("/")
        assert 500 <= float(message.value.text) < 2**31


def test_view_shows_the_next_seed_when_one_is_broken(page):
    page.route("**/generate?seed=77&size=480*", lambda route: route.fulfill(body=""))
    page.goto("/?seed=77")
    expect(page.get_by_role("dialog").locator("[data-missing]")).to_be_attached()
    page.get_by_role("button", name="Next seed").click()
    expect(page.get_by_role("dialog").get_by_role("img")).to_be_visible()
