"""Names as seeds, by HTTP, gRPC and docs/ringo-name-1.md; short URLs."""

import json
import random
import re
import shutil
import subprocess
import unicodedata
from urllib.parse import quote

import pytest

from serving.pb.ringo.v1 import picture_service_pb2 as api
from tests.conftest import LIMIT_S, ROOT

SPECIFICATION = (ROOT / "docs" / "ringo-name-1.md").read_text()
NODE = shutil.which("node")


def code_of(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", SPECIFICATION, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def seeds() -> dict[str, int]:
    """Seeds of names from all planes of Unicode, by the specification's code."""
    draw, space = random.Random(1), {}
    exec(code_of("python"), space)
    vectors = dict(re.findall(r"^\| `(\".*\")` \| `(\d+)` \|$", SPECIFICATION, re.MULTILINE))
    seeds = {json.loads(name): int(seed) for name, seed in vectors.items()}
    assert {name: space["seed_of_name"](name) for name in seeds} == seeds != {}
    while len(seeds) < 2_000 + len(vectors):
        plane = len(seeds) % 17 << 16
        name = "".join(chr(plane + draw.randrange(2**16)) for _ in range(draw.randint(1, 60)))
        if not {"Cc", "Cs"} & set(map(unicodedata.category, name)):
            seeds[name] = space["seed_of_name"](name)
    return seeds


def test_names_of_all_planes_have_distinct_seeds_by_http_and_grpc(gateway, batch, seeds):
    assert len(set(seeds.values())) == len({unicodedata.normalize("NFC", name) for name in seeds})
    for name, seed in seeds.items():
        assert gateway.ask(f"/generate?name={quote(name, safe='')}", "HEAD").headers["Ringo-Seed"] == str(seed)
        assert batch.pictures.Generate(api.GenerateRequest(name=name), timeout=LIMIT_S).picture.seed == seed


@pytest.mark.skipif(NODE is None, reason="node is not installed: apt-get install nodejs")
def test_javascript_of_the_specification_gives_the_same_seeds(seeds):
    program = (
        f"{code_of('javascript')}\nconst names = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "Promise.all(names.map(seedOfName)).then((seeds) => console.log(seeds.join(' ')));"
    )
    printed = subprocess.check_output([NODE, "-e", program], input=json.dumps(list(seeds)), text=True)
    assert printed.split() == list(map(str, seeds.values()))
