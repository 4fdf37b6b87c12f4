"""docs/reliability.md and SECURITY.md name existing tests."""

import re

from tests.conftest import ROOT


def names_in(pattern: str, files: str) -> set[str]:
    return {name for file in ROOT.glob(files) for name in re.findall(pattern, file.read_text(encoding="utf-8"), re.M)}


def test_pages_name_existing_tests_and_every_test_of_faults():
    test, named = r"^def (test_\w+)", r"`(test_\w+)`"
    reliability = names_in(named, "docs/reliability.md")
    assert reliability | names_in(named, "SECURITY.md") <= names_in(test, "tests/**/test_*.py")
    assert names_in(test, "tests/faults/test_*.py") <= reliability
