from contextlib import closing

import pytest

from serving.model_client.client import ModelClient
from tests.conftest import LIMIT_S, VERSION
from tests.fake_model_server import FakeModelServer


@pytest.fixture
def server():
    """A fake model server of one test, which may change its replies."""
    with FakeModelServer(version=VERSION) as server:
        yield server


@pytest.fixture
def client(server):
    with closing(ModelClient(server.target, "apple", predict_timeout_s=LIMIT_S)) as client:
        yield client
