import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.errors import ModelTimeout
from serving.runtime.single_flight import SingleFlight
from tests.conftest import LIMIT_S


def test_follower_starts_again_when_the_deadline_of_the_leader_passes():
    led, followed = threading.Event(), threading.Event()

    class Key:
        """Equals all keys; sets `followed` when the second call finds the first."""

        def __hash__(self) -> int:
            return 0

        def __eq__(self, other: object) -> bool:
            followed.set()
            return True

    def time_out() -> bytes:
        led.set()
        assert followed.wait(LIMIT_S)
        raise ModelTimeout("The deadline passed.")

    flight = SingleFlight()
    with ThreadPoolExecutor() as pool:
        leader = pool.submit(flight.do, Key(), time_out)
        assert led.wait(LIMIT_S)
        assert flight.do(Key(), lambda: b"image") == b"image"
        with pytest.raises(ModelTimeout):
            leader.result(LIMIT_S)
