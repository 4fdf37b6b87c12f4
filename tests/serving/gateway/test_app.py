"""Images, pages, errors and readiness of the gateway, over HTTP."""

import io
import json
import os

import grpc
import numpy as np
import pytest
from PIL import Image
from werkzeug.http import parse_options_header

from serving.gateway.app import create_app
from serving.model_client.messages import types_pb2
from serving.rendering.encoding import RENDERER_VERSION
from serving.settings import Settings
from tests.conftest import BUNDLED, VERSION, wait_until
from tests.fake_model_server import HEIGHT, WIDTH, answer, picture, refusing


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    return sheet[row * HEIGHT : (row + 1) * HEIGHT, column * WIDTH : (column + 1) * WIDTH]


def test_grid_shows_its_seeds_row_by_row(gateway):
    sheet = gateway.pixels("/grid?seeds=5,1,7-9&columns=3")
    assert sheet.shape == (2 * HEIGHT, 3 * WIDTH, 3)
    for place, seed in enumerate((5, 1, 7, 8, 9)):
        assert np.array_equal(tile(sheet, *divmod(place, 3)), picture(seed, VERSION))
    assert (tile(sheet, 1, 2) == 255).all()


def test_animation_shows_the_images_of_the_morph(gateway):
    strip = gateway.pixels("/morph?start=10&end=200&frames=5")
    animation = gateway.ask("/animation?start=10&end=200&frames=5")
    assert animation.headers["Content-Type"] == "image/webp"
    with Image.open(io.BytesIO(animation.body)) as image:
        assert (image.n_frames, image.info["loop"]) == (8, 0)  # 5 there, 3 back; forever
        for place in range(5):
            image.seek(place)
            assert np.array_equal(np.asarray(image.convert("RGB")), tile(strip, 0, place))


@pytest.mark.parametrize(
    ("requested", "accept", "vary", "mimetype"),
    [
        *((f"&format={name}", "image/gif", None, f"image/{name}") for name in ("png", "webp", "jpeg")),
        ("", "*/*", "Accept", "image/png"),
        ("", "image/jpeg;q=0.5, image/webp;q=0.4", "Accept", "image/jpeg"),
        ("", "image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "Accept", "image/webp"),  # of a browser's <img>
        ("", "image/webp;q=0.9, image/png;q=0.2, image/jpeg;q=0.2, */*", "Accept", "image/webp"),
    ],
)
def test_format_follows_accept_and_size_is_the_longer_side(gateway, requested, accept, vary, mimetype):
    reply = gateway.ask(f"/generate?seed=1&size=100{requested}", Accept=accept)
    assert (reply.status, reply.headers["Content-Type"], reply.headers["Vary"]) == (200, mimetype, vary)
    with Image.open(io.BytesIO(reply.body)) as image:
        assert (image.get_format_mimetype(), image.size) == (mimetype, (100, 75))


def test_grid_is_refused_when_images_of_the_model_are_too_large(server, start_gateway):
    def large(request):
        (tensor,) = request.inputs.values()
        return answer(request, as_content=True, images=np.zeros((tensor.tensor_shape.dim[0].size, 2, 300, 3), np.uint8))

    server.reply = large
    problem = start_gateway(server.target).ask("/grid").problem
    assert (problem["status"], problem["parameter"], problem["value"]) == (400, "size", "300")


def test_about_and_page_state_the_licence_of_the_model_card(server, start_gateway, tmp_path):
    card = (BUNDLED / "model_card.md").read_text()
    licence = (
        "CC-BY-SA-4.0; Mihai Oltean, Fruits-360 (fruits-360-3-body-problem, commit f0f02937), CC BY-SA 4.0, "
        "pixels cropped and scaled to 128x128, black levels corrected"
    )
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "model_card.md").write_text(card)
    gateway = start_gateway(server.target, model_base_path=tmp_path)
    assert json.loads(gateway.ask("/about").body) == {
        "model": "apple",
        "version": 3,
        "versions": [3],
        "replica": "proved",
        "size": 8,
        "renderer": RENDERER_VERSION,
        "licence": licence,
        "card": card,
    }
    assert licence in gateway.ask("/").body.decode()
    with Image.open(io.BytesIO(gateway.ask("/42.png").body)) as image:
        assert "Copyright" not in image.info  # only images of the bundled model have it, by its digest


def test_about_has_no_card_when_its_file_is_a_fifo(server, start_gateway, tmp_path):
    (tmp_path / "3").mkdir()
    os.mkfifo(tmp_path / "3" / "model_card.md")
    assert json.loads(start_gateway(server.target, model_base_path=tmp_path).ask("/about").body)["card"] is None


@pytest.mark.parametrize("url", ["/about", "/openapi.json", "/docs", "/", "/static/gallery.js", "/favicon.ico"])
def test_pages_about_the_service_are_revalidated(gateway, url):
    whole = gateway.ask(url)
    assert (whole.status, whole.headers["Cache-Control"]) == (200, "no-cache")
    assert gateway.ask(url, If_None_Match=whole.headers["ETag"]).status == 304


def test_image_has_a_file_name_in_utf_8_when_the_model_has_any_name(server, start_gateway):
    name = 'café "りんご"'
    server.model_name = name
    gateway = start_gateway(server.target, model_name=name)
    for url, file in (("/generate?seed=42&format=webp", "42.webp"), ("/grid", "grid.png")):
        disposition, options = parse_options_header(gateway.ask(url).headers["Content-Disposition"])
        assert (disposition, options["filename"]) == ("inline", f"{name}-{file}")


def test_random_seeds_differ_and_are_exact_in_javascript(gateway):
    seeds = {int(gateway.ask("/generate").headers["Ringo-Seed"]) for _ in range(20)}
    assert len(seeds) == 20
    assert 2**48 < max(seeds) < 2**53  # fails by chance once in 2**100 runs


def test_unexpected_exception_is_a_problem_without_a_traceback():
    app = create_app(Settings())
    app.add_url_rule("/broken", view_func=lambda: {}["the inside"])
    reply = app.test_client().get("/broken")
    assert (reply.status_code, reply.content_type) == (500, "application/problem+json")
    assert "the inside" not in reply.text


@pytest.mark.parametrize(
    ("code", "status", "kind", "retry_after"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, 502, "model-mismatch", None),
        (grpc.StatusCode.CANCELLED, 503, "model-unavailable", "1"),
        (grpc.StatusCode.UNAVAILABLE, 503, "model-unavailable", "1"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503, "overloaded", "1"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "model-timeout", None),
    ],
)
def test_error_of_the_model_server_is_a_problem(gateway, model_server, monkeypatch, code, status, kind, retry_after):
    monkeypatch.setattr(model_server, "reply", refusing(code))
    reply = gateway.ask("/generate?seed=1000")
    assert (reply.status, reply.problem["type"]) == (status, f"urn:ringo:problem:{kind}")
    sentence = f"The model server at {model_server.target} answered {code.name} for model 'apple'."
    assert reply.problem["detail"] == sentence
    assert (reply.headers["Retry-After"], reply.headers["Cache-Control"]) == (retry_after, "no-store")


@pytest.mark.parametrize(
    ("options", "alter"),
    [
        ({"version": VERSION + 1}, None),
        ({}, lambda response: response.Clear()),
        ({}, lambda response: response.outputs["logits"].CopyFrom(response.outputs.pop("images"))),
        ({}, lambda response: setattr(response.outputs["images"], "dtype", types_pb2.DT_FLOAT)),
        ({}, lambda response: response.outputs["images"].int_val.pop()),
        ({"as_content": True}, lambda response: setattr(response.outputs["images"], "tensor_content", b"short")),
        ({}, lambda response: response.model_spec.ClearField("version")),
        *(
            ({"images": np.zeros(shape, np.uint8)}, None)
            for shape in ((2, 6, 8, 3), (1, 6, 8, 4), (1, 6, 8, 1), (1, 0, 8, 3), (1, 6, 8))
        ),
    ],
)
def test_response_of_another_version_shape_or_type_is_502(gateway, model_server, monkeypatch, options, alter):
    def reply(request):
        response = answer(request, **options)
        if alter:
            alter(response)
        return response

    monkeypatch.setattr(model_server, "reply", reply)
    assert gateway.ask("/generate?seed=1000").status == 502


@pytest.mark.parametrize(("state", "status"), [("AVAILABLE", 200), ("LOADING", 503), ("END", 503)])
def test_gateway_is_ready_when_a_version_is_available(gateway, model_server, monkeypatch, state, status):
    monkeypatch.setattr(model_server, "state", state)
    wait_until(lambda: gateway.ask("/readyz").status == status, "the gateway to notice")
    monkeypatch.undo()
    wait_until(lambda: gateway.ask("/readyz").status == 200, "the gateway to notice again")
