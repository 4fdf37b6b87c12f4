import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.errors import ModelTimeout
from serving.runtime.single_flight import SingleFlight
from tests.conftest import LIMIT_S, wait_until


@pytest.mark.parametrize(("deadline_s", "made"), [(float("inf"), "by the second"), (0.0, None)])
def test_who_has_time_left_when_the_one_he_waits_for_has_none_begins_anew(deadline_s, made):
    flight: SingleFlight[str, str] = SingleFlight()
    time_is_up = threading.Event()

    def too_late() -> str:
        assert time_is_up.wait(LIMIT_S)
        raise ModelTimeout("The caller's time was up.")

    with ThreadPoolExecutor() as pool:
        first = pool.submit(flight.do, "apple", too_late)
        wait_until(lambda: "apple" in flight._flights, "the first to begin")
        second = pool.submit(flight.do, "apple", lambda: "by the second", deadline_s=deadline_s)
        wait_until(lambda: flight._flights["apple"]._waiters or second.done(), "the second to wait")
        time_is_up.set()
        with pytest.raises(ModelTimeout):
            first.result(LIMIT_S)
        if made is None:
            with pytest.raises(ModelTimeout):
                second.result(LIMIT_S)
        else:
            assert second.result(LIMIT_S) == made
    assert not flight._flights
