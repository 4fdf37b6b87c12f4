"""`paint` against real batch servers, whose model server is a fake: the same pictures, whatever goes away meanwhile."""

import hashlib
import threading

from tests.batch_process import batch_for
from tests.conftest import LIMIT_S, VERSION, wait_until
from tests.fake_model_server import FakeModelServer, answer
from tests.gateway_process import gateway_for
from tests.serving.paint.test_command import Target, paint, painting, rows

TOKEN = "a-token-of-the-tests"


class Held:
    """A reply of the fake model server that waits, from the `after`th request for pictures on, until it is let go."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._asked = 0
        self._lock = threading.Lock()
        self._go = threading.Event()
        self.reached = threading.Event()

    def __call__(self, request):
        with self._lock:
            self._asked += request.model_spec.signature_name == "generate"
            waits = self._asked > self._after
        if waits:
            self.reached.set()
            assert self._go.wait(LIMIT_S)
        return answer(request, version=1)

    def let_go(self) -> None:
        self._go.set()


def test_the_files_are_what_generate_answers_with(model_server, tmp_path):
    seeds = (0, 1, 31, 32, 299)
    with gateway_for(model_server.target, tmp_path) as gateway:
        said = {seed: gateway.ask(f"/generate?seed={seed}&version={VERSION}").body for seed in seeds}
    with batch_for(model_server.target, tmp_path, token=TOKEN) as batch:
        paint(Target(batch.target), tmp_path / "out", seeds="0:300", RINGO_TOKEN=TOKEN)
    assert {seed: (tmp_path / "out" / f"000000/{seed:09d}.png").read_bytes() for seed in seeds} == said
    assert len(rows(tmp_path / "out")) == 300


def test_a_server_that_is_stopped_in_mid_stream_costs_nothing_where_there_is_another(tmp_path):
    held = Held(after=20)
    with (
        FakeModelServer(reply=held) as model_server,
        batch_for(model_server.target, tmp_path, batch_drain_s=1) as one,
        batch_for(model_server.target, tmp_path) as other,
    ):
        both = "ipv4:" + ",".join(f"127.0.0.1:{batch.target.rpartition(':')[2]}" for batch in (one, other))
        with painting(Target(both), tmp_path / "out", seeds="0:1500") as process:
            assert held.reached.wait(LIMIT_S)
            one.process.terminate()
            held.let_go()
            one.process.wait(LIMIT_S)
            assert "1,500 pictures" in process.communicate(timeout=LIMIT_S)[0]
    assert_whole(tmp_path / "out", 1500)


def test_a_model_server_that_dies_and_comes_back_costs_time_and_no_picture(tmp_path):
    held = Held(after=12)
    with (
        FakeModelServer(reply=held) as before,
        batch_for(before.target, tmp_path) as batch,
        painting(Target(batch.target), tmp_path / "out", seeds="0:1000") as process,
    ):
        assert held.reached.wait(LIMIT_S)
        before.stop()
        held.let_go()
        wait_until(lambda: "UNAVAILABLE" in batch.log.read_text(), "the outage")
        with FakeModelServer(port=before.port):
            assert "1,000 pictures" in process.communicate(timeout=LIMIT_S)[0]
    assert_whole(tmp_path / "out", 1000)


def assert_whole(out, count):
    held = rows(out)
    assert [row["seed"] for row in held] == list(range(count))
    assert all(hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["sha256"] for row in held)


def test_without_the_token_the_servers_sentence_is_told(model_server, tmp_path):
    with batch_for(model_server.target, tmp_path, token=TOKEN) as batch:
        said = paint(Target(batch.target), tmp_path / "out", code=1)
        assert "UNAUTHENTICATED" in said.splitlines()[-1]
        assert TOKEN not in said
