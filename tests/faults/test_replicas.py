"""Several model servers behind one name: each ETag has one kind's bytes."""

from tests.conftest import wait_until
from tests.fake_model_server import FakeModelServer, rendering_other_bytes
from tests.faults.load import put_load
from tests.gateway_process import gateway_for

REQUESTS = 2_000
SEEDS = 40


def test_each_etag_has_bytes_of_one_replica_when_connections_change(tmp_path):
    with (
        FakeModelServer(max_connection_age_s=1) as verified,
        FakeModelServer(port=verified.port, reply=rendering_other_bytes(), max_connection_age_s=1),
        gateway_for(verified.target, tmp_path, cache_mb=0) as gateway,
        put_load(gateway.port, 8, lambda number: f"/generate?seed={number % SEEDS}&version=1") as load,
    ):
        load.wait_for_images(REQUESTS, limit_s=200)
        # The kernel chooses the server of each connection, so the first few may all have the same one.
        wait_until(lambda: len(load.digests("ETag")) == 2 * SEEDS, "each image of both servers", limit_s=200)
    assert {outcome.status for outcome in load.failed} <= {503}  # if a connection ends before its golden check
    assert {len(found) for found in load.digests("ETag").values()} == {1}
