"""Random messages, HTTP heads and photos; `make fuzz` sends more."""

import os

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.pb.ringo.v1 import picture_service_pb2 as api
from tests.batch_process import SERVING, batch_request
from tests.conftest import BUNDLED, LIMIT_S
from tests.gateway_process import free_port
from tests.hosted_model_server import from_latents, generate, model_server_process
from tests.photo_files import SIDE, encoded, load, save_photo
from tests.serving.gateway.test_refused_requests import answer_to, request

MESSAGES, HEADS = (int(os.environ.get(f"FUZZ_{name}", "200")) for name in ("MESSAGES", "HEADS"))
FILES = int(os.environ.get("FUZZ_FILES", "500"))  # 200 miss a decoder's unexpected error
TIME_S = 60 + 0.1 * max(MESSAGES, HEADS, FILES)  # twenty times the duration on an idle machine

# The same in every run, however long they take.
STEADY = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}

int32, int64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
seed = st.integers(0, 50) | st.sampled_from([-1, 2**63 - 1, -(2**63)]) | int64
options = st.none() | st.builds(
    api.PictureOptions,
    size=st.none() | st.sampled_from([0, 15, 16, 17, 64, 256, 257, -1]) | int32,
    format=st.integers(0, 5) | int32,
    model_version=st.none() | st.just(1) | int64,
)
seed_list = st.builds(api.SeedList, seeds=st.lists(seed, max_size=70))
messages = (
    st.builds(api.GenerateRequest, seed=st.none() | seed, name=st.none() | st.text(), options=options)
    | st.builds(api.GenerateBatchRequest, range=st.builds(api.SeedRange, start=seed, end=seed), options=options)
    | st.builds(api.GenerateBatchRequest, list=seed_list, options=options)
).map(lambda message: message.SerializeToString())


@st.composite
def mangled(draw, of):
    """Draw bytes of `of` and replace, remove or insert some of them."""
    changed = bytearray(draw(of))
    for _ in range(draw(st.integers(0, 5))):
        place = draw(st.integers(0, len(changed)))
        changed[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(changed)


methods = st.sampled_from(["Generate", "GenerateBatch", "DescribeModel"])
calls = st.tuples(methods, messages | mangled(messages) | st.binary(max_size=100))


@pytest.mark.timeout(TIME_S)
def test_batch_server_answers_or_refuses_any_message(batch):
    codes = set()

    @settings(max_examples=MESSAGES, **STEADY)
    @given(calls)
    @example(("GenerateBatch", batch_request(range(100_000)).SerializeToString()))
    @example(("GenerateBatch", batch_request(range(1), model_version=9).SerializeToString()))
    def send(call):
        method, message = call
        answers = batch.channel.unary_stream(f"/ringo.v1.PictureService/{method}")(message, timeout=LIMIT_S)
        code, details = "OK", ""
        try:
            next(answers)  # the first image of many is enough
            answers.cancel()
        except grpc.RpcError as error:
            code, details = error.code().name, error.details()
        assert code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"), details
        assert "Traceback" not in details
        codes.add(code)

    send()
    assert codes == {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert batch.process.poll() is None
    assert batch.status() == SERVING
    assert "Traceback" not in batch.log.read_text()


@st.composite
def predictions(draw):
    """Draw a Predict request with a tensor of any type and shape."""
    request = generate(draw(st.lists(int64, max_size=3))) if draw(st.booleans()) else from_latents(shape=[2, 128])
    (name,) = request.inputs
    tensor = request.inputs[name]
    if draw(st.booleans()):
        tensor.dtype = draw(st.integers(0, 31))
    if draw(st.booleans()):
        del tensor.tensor_shape.dim[:]
        for size in draw(st.lists(st.sampled_from([0, 1, 2, 3, 64, 65, 128, 2**20, 2**31, 2**62, -1]), max_size=4)):
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_shape.unknown_rank = draw(st.booleans())
    if draw(st.booleans()):
        tensor.tensor_content = draw(st.binary(max_size=40))
        tensor.string_val.append(b"apple")
        tensor.resource_handle_val.add(device="here")
    if draw(st.booleans()):
        request.model_spec.signature_name = draw(st.sampled_from(["", "golden", "sample", "generate", "none"]))
    return request.SerializeToString()


@pytest.mark.timeout(TIME_S)
def test_embedded_model_server_keeps_serving_after_any_request(tmp_path):
    port, log = free_port(), tmp_path / "log"
    with (
        model_server_process(log, "serving apple", "--model_base_path", BUNDLED.parent, "--port", port) as process,
        grpc.insecure_channel(f"localhost:{port}") as channel,
    ):
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        found = set()

        @settings(max_examples=MESSAGES, **STEADY)
        @given(predictions() | mangled(predictions()) | st.binary(max_size=50))
        @example(from_latents(shape=[2**20, 128]).SerializeToString())
        def send(message):
            try:
                predict(message, timeout=LIMIT_S)
                found.add("OK")
            except grpc.RpcError as error:
                found.add(error.code().name if error.code() is not grpc.StatusCode.INTERNAL else error.details())

        send()
        refusals = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "The bytes are no PredictRequest."}
        refusals.add("RESOURCE_EXHAUSTED")  # 2**20 images are 48 GiB
        assert {"OK"} < found <= refusals | {"OK"}
        assert process.poll() is None
    assert "Traceback" not in log.read_text()


LINES = """\
Accept: image/webp;q=0.5, */*;q=0.1
If-None-Match: W/"a", "proved-0"
Range: bytes=0-9,20-
Content-Length: 0
Content-Length: 3
Transfer-Encoding: chunked
Expect: 100-continue
Authorization: Bearer x
Host: a:b:c
Upgrade: h2c
If-Modified-Since: Mon, 01 Jan 2024 00:00:00 GMT
Access-Control-Request-Method: PUT
"""
TARGETS = "/generate?seed=1 /grid?seeds=1,2-9&columns=3 /morph?start=1&end=2 / /about /openapi.json /livez /readyz *"
heads = st.builds(
    lambda target, method, lines: request(target, method=method, headers="".join(lines)),
    st.sampled_from(TARGETS.split()),
    st.sampled_from(["GET", "GET", "HEAD", "OPTIONS", "POST"]),
    st.lists(st.sampled_from([f"{line}\r\n" for line in LINES.splitlines()]), max_size=4),
)


@pytest.mark.timeout(TIME_S)
def test_gateway_answers_or_refuses_any_head(gateway):
    statuses = set()

    @settings(max_examples=HEADS, **STEADY)
    @given(heads | mangled(heads))
    def send(head):
        # The second request completes a head that is cut off, or else ends the connection.
        status, _, body = answer_to(gateway.port, head + request("/livez"))
        assert status < 499 or b"Unsupported transfer coding" in body, body  # 501, as RFC 9112 wants
        assert b"Traceback" not in body
        statuses.add(status)

    send()
    assert statuses >= {200, 400, 405, 413}
    assert gateway.process.poll() is None
    assert gateway.ask("/readyz").status == 200
    assert "Traceback" not in gateway.log.read_text()


NOISE = Image.effect_noise((24, 20), 60).convert("RGB")
PHOTOS = [encoded(NOISE, name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")]
PHOTOS.append(encoded(NOISE.convert("P"), "PNG", transparency=1))


@pytest.mark.timeout(TIME_S)
@settings(max_examples=FILES, **STEADY)
@given(content=mangled(st.sampled_from(PHOTOS)))
def test_photo_loader_accounts_for_any_file(folder, content):
    save_photo(folder / "good.png")
    (folder / "broken").write_bytes(content)
    photos = load(folder)
    assert photos.summary.files == 2 == photos.summary.used + sum(photos.summary.skipped.values())
    assert photos.pixels.shape == (photos.summary.used, SIDE, SIDE, 3)
    assert "good.png" in photos.files or photos.summary.used == 1  # or the other file is its copy
