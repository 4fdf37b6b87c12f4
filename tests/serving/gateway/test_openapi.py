"""The OpenAPI description, tested by schemathesis and generated clients; `make fuzz` sends 20,000 requests."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.gateway.app import create_app
from serving.settings import Settings
from tests.conftest import LIMIT_S, ROOT

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "100"))
FUZZING_S = 60 + REQUESTS  # one takes 45 ms on an idle machine


@pytest.mark.timeout(FUZZING_S)
def test_a_fuzzer_finds_no_5xx_and_nothing_undocumented(gateway, tmp_path):
    # Its own list leaves out 414, which gunicorn answers to a URL above 4 kB.
    (tmp_path / "schemathesis.toml").write_text(
        "[checks.negative_data_rejection]\nexpected-statuses = [400, 404, 406, 414]\n"
    )
    words = [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{gateway.port}/openapi.json"]
    # That count x size x size has a limit is more than JSON Schema can say.
    flags = f"--exclude-checks positive_data_acceptance --phases fuzzing --max-examples {REQUESTS // 5} --seed 1"
    flags += " --continue-on-failure --suppress-health-check all --no-color --request-timeout 60"
    fuzzed = subprocess.run([*words, *flags.split()], cwd=tmp_path, capture_output=True, text=True, timeout=FUZZING_S)
    assert fuzzed.returncode == 0, fuzzed.stdout + fuzzed.stderr
    (sent,) = re.findall(r"(\d+) generated, \1 passed", fuzzed.stdout)
    assert int(sent) >= REQUESTS


def test_openapi_describes_every_route_except_pages(gateway):
    routes = {rule.rule for rule in create_app(Settings()).url_map.iter_rules()}
    described = json.loads(gateway.ask("/openapi.json").body)
    assert described["openapi"].startswith("3.1.")
    pages = {"/", "/favicon.ico", "/static/<path:filename>"}
    assert {re.sub(r"<([^:>]*:)?(\w+)>", r"{\2}", rule) for rule in routes - pages} == set(described["paths"])


def test_openapi_describes_refusals_of_short_urls_and_their_headers(gateway):
    operation = json.loads(gateway.ask("/openapi.json").body)["paths"]["/{seed}.{format}"]["get"]
    assert set(operation["responses"]) == {"200", "304", "400", "404", "413", "414", "502", "503", "504"}
    assert set(operation["responses"]["503"]["headers"]) == {"Retry-After"}
    required = [parameter for parameter in operation["parameters"] if parameter.get("required")]
    assert not any("Default" in parameter["description"] for parameter in required)


TSC = "tsc --strict --module nodenext --target es2022 --skipLibCheck program.ts"


@pytest.mark.parametrize(
    ("language", "generator", "options", "folder", "suffix", "commands"),
    [
        ("python", "openapi-python-client", "generate --output-path client --path", "client", "py", "{py} program.py"),
        ("typescript", "openapi-typescript", "-o schema.d.ts", ".", "ts", f"{TSC} && node program.js"),
    ],
)
def test_generated_client_returns_the_bytes_of_an_image(
    gateway, tmp_path, language, generator, options, folder, suffix, commands
):
    # No lock of ours has these tools of users: `pip install openapi-python-client ruff` and
    # `npm install openapi-typescript openapi-fetch typescript@5 @types/node`.
    found = shutil.which(generator)
    if found is None:
        pytest.skip(f"{generator} is not on the PATH")

    def run(line: str, cwd: Path) -> str:
        done = subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    (tmp_path / "openapi.json").write_bytes(gateway.ask("/openapi.json").body)
    assert "warning" not in run(f"{generator} {options} openapi.json", tmp_path).lower()
    (program,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "http.md").read_text(), re.DOTALL)
    place = tmp_path / folder
    program = program.replace("localhost:8080", f"127.0.0.1:{gateway.port}")
    (place / f"program.{suffix}").write_text(program)
    (place / "package.json").write_text('{"type": "module"}')
    (place / "node_modules").symlink_to(Path(found).parents[1])
    run(commands.format(py=Path(found).with_name("python")), place)
    assert (place / "alice.png").read_bytes() == gateway.ask("/generate?name=alice&size=256").body
