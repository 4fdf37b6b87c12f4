"""Servers with JSON logs and the SETTINGS of a test file, if it has any."""

import pytest

from tests.batch_process import batch_for
from tests.gateway_process import gateway_for


@pytest.fixture(scope="module")
def settings(request) -> dict[str, object]:
    return {"log_format": "json", **getattr(request.module, "SETTINGS", {})}


@pytest.fixture(scope="module")
def gateway(model_server, settings, tmp_path_factory):
    with gateway_for(model_server.target, tmp_path_factory.mktemp("gateway"), **settings) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def batch(model_server, settings, tmp_path_factory):
    with batch_for(model_server.target, tmp_path_factory.mktemp("batch"), **settings) as batch:
        yield batch
