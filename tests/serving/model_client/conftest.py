from contextlib import closing

import pytest

from serving.model_client.client import ModelClient
from tests.conftest import LIMIT_S


@pytest.fixture
def client(server):
    with closing(ModelClient(server.target, "apple", predict_timeout_s=LIMIT_S)) as client:
        yield client
