"""docs/reliability.md and SECURITY.md name existing tests."""

import re

from tests.conftest import ROOT


def names_in_page(*pages: str) -> set[str]:
    return {name for page in pages for name in re.findall(r"`(test_\w+)`", (ROOT / page).read_text(encoding="utf-8"))}


def names_in(pattern: str) -> set[str]:
    files = (ROOT / "tests").glob(pattern)
    return {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.M)}


def test_pages_name_existing_tests():
    assert names_in_page("docs/reliability.md", "SECURITY.md") - names_in("**/test_*.py") == set()


def test_reliability_page_names_every_test_of_faults():
    assert names_in("faults/test_*.py") - names_in_page("docs/reliability.md") == set()
