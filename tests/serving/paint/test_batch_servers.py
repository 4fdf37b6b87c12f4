"""`paint` against a real batch server, whose model server is a fake."""

from tests.batch_process import batch_for
from tests.conftest import VERSION
from tests.gateway_process import gateway_for
from tests.serving.paint.test_command import Target, paint, rows

TOKEN = "a-token-of-the-tests"


def test_files_of_paint_are_the_bytes_of_generate(model_server, tmp_path):
    seeds = (0, 31, 299)
    with gateway_for(model_server.target, tmp_path) as gateway:
        images = {seed: gateway.ask(f"/generate?seed={seed}&version={VERSION}").body for seed in seeds}
    with batch_for(model_server.target, tmp_path, token=TOKEN) as batch:
        paint(Target(batch.target), tmp_path / "out", seeds="0:300", token=TOKEN)
    assert {seed: (tmp_path / "out" / f"000000/{seed:09d}.png").read_bytes() for seed in seeds} == images
    assert len(rows(tmp_path / "out")) == 300
