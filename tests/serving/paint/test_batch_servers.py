"""`paint` against real batch servers, whose model server is a fake: the same pictures, whatever goes away meanwhile."""

from tests.batch_process import batch_for
from tests.conftest import VERSION
from tests.gateway_process import gateway_for
from tests.serving.paint.test_command import Target, paint, rows

TOKEN = "a-token-of-the-tests"


def test_the_files_are_what_generate_answers_with(model_server, tmp_path):
    seeds = (0, 1, 31, 32, 299)
    with gateway_for(model_server.target, tmp_path) as gateway:
        said = {seed: gateway.ask(f"/generate?seed={seed}&version={VERSION}").body for seed in seeds}
    with batch_for(model_server.target, tmp_path, token=TOKEN) as batch:
        paint(Target(batch.target), tmp_path / "out", seeds="0:300", token=TOKEN)
    assert {seed: (tmp_path / "out" / f"000000/{seed:09d}.png").read_bytes() for seed in seeds} == said
    assert len(rows(tmp_path / "out")) == 300


def test_without_the_token_the_servers_sentence_is_told(model_server, tmp_path):
    with batch_for(model_server.target, tmp_path, token=TOKEN) as batch:
        said = paint(Target(batch.target), tmp_path / "out", code=1)
        assert "UNAUTHENTICATED" in said.splitlines()[-1]
        assert TOKEN not in said
