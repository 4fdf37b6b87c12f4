"""report.html as a browser parses it, and its charts' tables."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.conftest import BUNDLED
from training.data.dataset import PhotosRecord
from training.evaluate import results
from training.evaluate.report import Pairs, Report, write_report
from training.records import COLUMNS, read_curves


def random_images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)


def pairs(distances: np.ndarray, name: str = "seed 1") -> Pairs:
    return Pairs(random_images(2), [name] * 2, random_images(2), ["a.jpg", "b.jpg"], distances[:2], distances)


FAR = np.linspace(10.0, 20.0, 50)
STEPS = np.arange(1.0, 1001.0)
HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/>\udcff"
FAR_AWAY, CLOSE = results.NearestDistances(15, 10), results.NearestDistances(1, 1)
COPIES = results.CopyCheck(FAR_AWAY, FAR_AWAY, CLOSE, CLOSE, results.Verdict("good", "It is new.", "See 15."))
DISTANCES = results.Distances(images=1900, photos=1900, kid_x1000=43.58, kid_x1000_std=2.5, fid=42.49)
EVALUATION = results.Evaluation(
    model="apple, version 1",
    batch=14_000,
    features="a network",
    photos="photos, 1,900 photos",
    seeds="10000 to 10055",
    against_all=DISTANCES,
    against_held_out=replace(DISTANCES, photos=190, fid=None),
    copies=COPIES,
    other_features=(),
    coverage=results.Coverage("folder", 0.25, {"gala": 0.5, "elstar": 0.5}, {"gala": 1.0, "elstar": 0.0}, ("elstar",)),
    references=results.References(copy_kid_x1000=-0.4, noise_kid_x1000=750, noise_varieties=1),
    remarks=("One sees apples.",),
)
PHOTOS = PhotosRecord(60, 57, {"copy of another file": 3}, pixels_sha256="", held_out=12, held_out_arcs=())
FULL = Report(
    EVALUATION,
    random_images(100),
    PHOTOS,
    held_out_photos="12 photos are held out.",
    rights={"Attribution": "somebody"},
    missing={"elstar": random_images(2)},
    generated=pairs(FAR),
    held_out=pairs(FAR, "held.jpg"),
    interpolations={"seed 3 to seed 9": random_images(7)},
    losses={"step": STEPS, **dict.fromkeys(("g_loss", "d_loss", "d_real", "d_generated"), 1 / STEPS)},
    kid=dict(zip(COLUMNS["kid.csv"], np.array([[500, 300, 1, 2], [1e3, 40, 1, 5], [1500, -1, 1, 8]]).T, strict=True)),
    config={"batch_size": 16, "flip": True},
)


class Page(HTMLParser):
    """The page's elements and its text, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def render(report: Report, folder) -> Page:
    write_report(folder / "report.html", report)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Page]:
    coverage = results.Coverage(HOSTILE, 0.25, {HOSTILE: 1.0}, {HOSTILE: 0.0}, (HOSTILE,))
    evaluation = replace(EVALUATION, model=HOSTILE, photos=HOSTILE, coverage=coverage, remarks=(HOSTILE,))
    missing, photos, texts = {HOSTILE: random_images(1)}, replace(PHOTOS, skipped={HOSTILE: 3}), {HOSTILE: HOSTILE}
    report = replace(FULL, evaluation=evaluation, photos=photos, held_out_photos=HOSTILE, config=texts, rights=texts)
    hostile = replace(report, missing=missing, generated=replace(pairs(FAR, HOSTILE), nearest_names=[HOSTILE] * 2))
    reports = {"full": FULL, "hostile": hostile}
    return {name: render(report, tmp_path_factory.mktemp(name)) for name, report in reports.items()}


@pytest.mark.parametrize("name", ["full", "hostile"])
def test_report_loads_nothing_from_outside(pages, name):
    found = pages[name]
    assert found.all("script", "iframe", "object") == []
    assert "url(" not in found.html
    assert "@import" not in found.html
    for name, value in (item for _, attributes in found.elements for item in attributes.items()):
        assert not name.startswith("on")
        if name in ("src", "href", "srcset", "action", "data"):
            assert value.startswith(("data:", "#"))


def test_report_shows_untrusted_names_as_text(pages):
    assert pages["hostile"].text.count(HOSTILE.replace("\udcff", r"\udcff")) == 14


def test_report_shows_100_seeds_and_every_image_has_an_alternative_text(pages):
    alternatives = [image["alt"] for image in pages["full"].all("img")]
    assert alternatives[alternatives.index("seed 0") :][:100] == [f"seed {seed}" for seed in range(100)]
    assert alternatives.count("photo of elstar") == 2  # of a missing variety
    assert all(alternatives)


def charts(found: Page) -> list[str | None]:
    return [image["alt"] for image in found.all("img") if image["src"].startswith("data:image/svg+xml")]


def test_report_charts_distances_kid_and_losses_and_states_their_numbers(pages):
    found = pages["full"]
    assert charts(found) == [
        "Chart: Histogram of distances",
        "Chart: KID × 1000 by batch and minutes of training",
        "Chart: Losses and outputs of the discriminator by batch",
    ]
    for sentence in (
        "Medians: generated images 15, held-out photos 15.",
        "From 300 at batch 500 after 2 minutes to -1 at batch 1,500 after 8 minutes.",
        "The lowest is -1 at batch 1,500 after 8 minutes.",
        "Batches 1 to 1,000: generator from 1 to 0.001, discriminator from 1 to 0.001,",
    ):
        assert sentence in found.text


def test_report_states_a_single_measurement_without_a_chart(tmp_path):
    first = {name: {column: values[:1] for column, values in getattr(FULL, name).items()} for name in ("kid", "losses")}
    found = render(replace(FULL, **first), tmp_path)
    assert charts(found) == ["Chart: Histogram of distances"]
    assert "KID × 1000 was measured once: 300 ± 1 at batch 500 after 2 minutes." in found.text
    assert "Batch 1: generator 1, discriminator 1, D(real) 1, D(generated) 1." in found.text


@pytest.mark.parametrize(
    ("kid", "missing", "copies", "level", "headline"),
    [
        (2.0, 0, "good", "good", "The images resemble the photos."),
        (2.0, 0, "bad", "bad", "The images resemble the photos, because many are copies."),
        (40.0, 0, "good", "unknown", "The images resemble the photos in part."),
        (2.0, 6, "good", "unknown", "The images resemble the photos in part."),
        (242.0, 0, "good", "bad", "The images are far from the photos."),
        (242.0, 16, "good", "bad", "The images show only 4 of 20 varieties."),
    ],
)
def test_report_begins_with_kid_and_coverage(tmp_path, kid, missing, copies, level, headline):
    shares = dict.fromkeys([f"cluster {number}" for number in range(20)], 0.05)
    coverage = results.Coverage("clusters", 0.25, shares, shares, tuple(shares)[:missing])
    checked = replace(COPIES, verdict=results.Verdict(copies, "On copies.", ""))
    evaluation = replace(EVALUATION, against_all=replace(DISTANCES, kid_x1000=kid), coverage=coverage, copies=checked)
    found = render(replace(FULL, evaluation=evaluation), tmp_path)
    words = f"{headline} KID x1000 is {kid:.3g}. A perfect copy of the photos has -0.4, the bundled model 3.31"
    assert found.text.split(" In short ")[2].startswith(words)
    verdicts = [a["class"] for a in found.all("div") if (a.get("class") or "").startswith("verdict")]
    assert verdicts == [f"verdict {level}", f"verdict {copies}"]
    assert found.text.index(headline) < found.text.index("On copies.")


def test_bundled_model_has_the_kid_that_reports_quote():
    card = (BUNDLED / "model_card.md").read_text(encoding="utf-8")
    assert f"| KID x1000, against all photos | {results.BUNDLED_KID_X1000} " in card
    assert f"| varieties covered | {results.BUNDLED_VARIETIES}," in card


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("500,310.5,9,1\n1500,200,8,3\n2000", [[500, 310.5, 9, 1], [1500, 200, 8, 3]]),  # torn
        ("500,310.5,9,1\n1500,200,8,", [[500, 310.5, 9, 1]]),
        ("5", []),
        ("", []),
    ],
)
def test_curves_leave_out_torn_rows(tmp_path, text, rows):
    (tmp_path / "kid.csv").write_text(f"step,kid_x1000,std,minutes\n{text}")
    assert np.transpose([*read_curves(tmp_path / "kid.csv").values()]).tolist() == rows
