"""Whether the tests that docs/reliability.md names are there, and all of tests/faults are named."""

import re

from tests.conftest import ROOT

NAMED = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")))


def names_in(pattern: str) -> set[str]:
    files = (ROOT / "tests").glob(pattern)
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M)}


def test_every_test_that_a_promise_names_is_there():
    assert NAMED - names_in("**/test_*.py") == set()


def test_every_test_of_a_fault_is_named_by_a_promise():
    assert names_in("faults/test_*.py") - NAMED - {"test_a_head_in_pieces_is_a_request_like_any_other"} == set()
