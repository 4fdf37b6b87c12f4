"""report.html, read as a browser reads it."""

from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from training.evaluate.report import DataSummary, Morph, Pairs, Report, write_report
from training.evaluate.results import Copies, Coverage, Distances, Evaluation, Nearness, Verdict
from training.records import read_curves

VOID = {"meta", "link", "img", "br"}
RNG = np.random.default_rng(0)


def pictures(n: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, 8, 8, 3), np.uint8)


def pairs(distances: np.ndarray, name: str = "seed 1") -> Pairs:
    return Pairs(pictures(2), [name] * 2, pictures(2), ["a.jpg", "b.jpg"], distances[:2], distances)


FAR = np.linspace(10.0, 20.0, 50)
STEPS = np.arange(1.0, 1001.0)
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/>\udcff"
COPIES = Copies(Nearness(15, 10), Nearness(15, 10), Nearness(1, 1), None, Verdict("good", "It is new.", "See 15."))
DISTANCES = Distances(pictures=1900, photos=1900, kid_x1000=43.58, kid_x1000_std=2.5, fid=42.49)
EVALUATION = Evaluation(
    model="apple, version 1",
    batch=14_000,
    features="a network",
    photos="photos, 1,900 photos",
    seeds="10000 to 10055",
    against_all=DISTANCES,
    against_held_out=replace(DISTANCES, photos=190, fid=None),
    copies=COPIES,
    other_judges=(),
    coverage=Coverage("folder", 0.25, {"gala": 0.5, "elstar": 0.5}, {"gala": 1.0, "elstar": 0.0}, ("elstar",)),
    remarks=("One sees apples.",),
)
DATA = DataSummary(60, 57, {"copy of another file": 3}, "12 photos are held out.", "CC0-1.0", "somebody")
FULL = Report(
    EVALUATION,
    pictures(100),
    DATA,
    generated=pairs(FAR),
    held_out=pairs(FAR, "held.jpg"),
    morphs=[Morph(3, 9, pictures(7))],
    losses={"step": STEPS, **dict.fromkeys(("g_loss", "d_loss", "d_real", "d_generated"), 1 / STEPS)},
    kid={"step": STEPS[:3] * 500, "kid_x1000": np.array([300.0, 40.0, -1.0]), "std": np.ones(3)},
    config={"batch_size": 16, "flip": True},
)
BARE = Report(replace(EVALUATION, batch=None, against_held_out=None, copies=None), pictures(100), DATA)


class Page(HTMLParser):
    """The page's elements in order; refuses one that is not closed where it belongs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.said).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.said.append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture
def page(tmp_path):
    def write(report: Report) -> Page:
        write_report(tmp_path / "report.html", report)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


def hostile() -> Report:
    named = replace(pairs(FAR, HOSTILE), nearest_names=[HOSTILE] * 2)
    coverage = Coverage(HOSTILE, 0.25, {HOSTILE: 1.0}, {HOSTILE: 0.0}, (HOSTILE,))
    evaluation = replace(EVALUATION, model=HOSTILE, photos=HOSTILE, coverage=coverage, remarks=(HOSTILE,))
    data = DataSummary(60, 57, {HOSTILE: 3}, HOSTILE, HOSTILE, HOSTILE)
    return replace(FULL, evaluation=evaluation, config={HOSTILE: HOSTILE}, data=data, generated=named)


@pytest.mark.parametrize("report", [FULL, BARE, hostile()], ids=["full", "bare", "hostile"])
def test_the_page_needs_nothing_but_itself(page, report):
    found = page(report)
    assert found.all("script", "iframe", "object") == []
    for _, attributes in found.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith(("data:", "#"))


def test_its_style_loads_nothing(tmp_path):
    write_report(tmp_path / "report.html", FULL)
    style = (tmp_path / "report.html").read_text(encoding="utf-8").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_names_are_shown_as_text_whatever_they_hold(page):
    assert page(hostile()).text.count("<script>alert('x')</script>\"><img src=http://evil.example/>\\udcff") == 14


def test_a_hundred_seeds_are_shown_and_every_picture_has_words(page):
    pictures = page(FULL).all("img")
    assert [p["alt"] for p in pictures[:100]] == [f"seed {seed}" for seed in range(100)]
    assert all(p["alt"] for p in pictures)
    assert all(drawing["aria-label"] for drawing in page(FULL).all("svg"))


@pytest.mark.parametrize("report", [FULL, BARE], ids=["full", "bare"])
def test_headings_descend_one_level_at_a_time_and_the_contents_lead_to_them(page, report):
    found = page(report)
    levels = [int(tag[1]) for tag, _ in found.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert [a["href"] for a in found.all("a")] == [f"#{heading['id']}" for heading in found.all("h2")]


@pytest.mark.parametrize(
    "sentence",
    [
        "Not checked for copies.",
        "Distances to the training photos were not measured, so this page cannot tell.",
        "No morphs were made.",
        "there is no curve of it.",
        "The history of its losses is not at hand",
        "The settings of the run are not at hand.",
    ],
)
def test_what_is_missing_is_said(page, sentence):
    assert sentence in page(BARE).text
    assert sentence not in page(FULL).text


def test_a_page_without_curves_draws_none(page):
    assert page(BARE).all("svg") == []


@pytest.mark.parametrize(
    ("report", "level", "words"),
    [(FULL, "good", "It is new. See 15."), (BARE, "unknown", "Not checked for copies.")],
    ids=["full", "bare"],
)
def test_the_verdict_on_copies_is_the_first_thing_said(page, report, level, words):
    found = page(report)
    assert {"class": f"verdict {level}"} in found.all("div")
    assert found.text.split(" In short ")[2].startswith(words)


def test_a_curve_names_its_lowest_value_and_the_batch_of_it(page):
    assert "the lowest is -1 at batch 1,500." in page(FULL).text


def test_a_long_curve_is_averaged_and_says_so(page):
    found = page(FULL)
    assert "Each point is the mean of 4 rows of history.csv." in found.text
    assert len(found.all("polyline")[-1]["points"].split()) == 250


def test_a_curve_of_one_point_leaves_a_dot(page):
    (line,) = page(replace(BARE, kid={name: column[:1] for name, column in FULL.kid.items()})).all("polyline")
    first, last = line["points"].split()
    assert first == last  # with round ends, which is a dot


def test_columns_are_read_and_a_torn_row_is_left_out(tmp_path):
    (tmp_path / "kid.csv").write_text("step,kid_x1000,std\n500,310.5,4\n1000,nan,4\n1500,200,3\n2000,1")
    found = read_curves(tmp_path / "kid.csv")
    assert {name: column.tolist() for name, column in found.items()} == {
        "step": [500, 1500],
        "kid_x1000": [310.5, 200],
        "std": [4, 3],
    }


@pytest.mark.parametrize("text", [None, "", "step,kid_x1000,std\n", "step,kid_x1000,std\n5"])
def test_no_file_or_no_whole_row_is_no_curve(tmp_path, text):
    if text is not None:
        (tmp_path / "kid.csv").write_text(text)
    assert read_curves(tmp_path / "kid.csv") == {}
