"""The OpenAPI description, held against the gateway by schemathesis. `make fuzz` sends 20,000 requests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.gateway.openapi import build_openapi
from serving.rendering.query import MAX_SEED, MAX_TILES

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "100"))
LIMIT_S = 60 + REQUESTS  # one takes 45 ms on an idle machine

# All but positive_data_acceptance: that count x size x size has a limit is more than JSON Schema can say.
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance"),
)


@pytest.mark.timeout(LIMIT_S)
def test_a_fuzzer_finds_no_5xx_and_nothing_undocumented(gateway, tmp_path):
    # Its own list leaves out 414, which gunicorn answers to a URL above 4 kB.
    (tmp_path / "schemathesis.toml").write_text(
        "[checks.negative_data_rejection]\nexpected-statuses = [400, 404, 406, 414]\n"
    )
    fuzzed = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{gateway.port}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--phases", "fuzzing", "--max-examples", str(REQUESTS // 5)),
            *("--continue-on-failure", "--seed", "1", "--suppress-health-check", "all", "--no-color"),
            *("--request-timeout", "60"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert fuzzed.returncode == 0, fuzzed.stdout + fuzzed.stderr
    (sent,) = re.findall(r"(\d+) generated, \1 passed", fuzzed.stdout)
    assert int(sent) >= REQUESTS


def test_the_description_is_that_of_openapi_3_1_and_served_as_it_is(gateway):
    described = json.loads(gateway.ask("/openapi.json").body)
    assert described["openapi"].startswith("3.1.")
    assert described == json.loads(json.dumps(build_openapi()))


@pytest.mark.parametrize(
    ("query", "accept", "status"),
    [
        ("seed=1", "*/*", 200),
        ("seed=x", "*/*", 400),
        ("version=9", "*/*", 404),
        ("", "text/html", 406),
    ],
)
def test_each_of_these_statuses_comes_and_is_described(gateway, query, accept, status):
    assert gateway.ask(f"/generate?{query}", Accept=accept).status == status
    assert str(status) in build_openapi()["paths"]["/generate"]["get"]["responses"]


@pytest.mark.parametrize("path", build_openapi()["paths"])
@pytest.mark.parametrize(
    ("query", "header", "status"),
    [
        ("", {"Content_Length": "5"}, 413),
        ("a" * 5000, {}, 414),
    ],
)
def test_each_of_these_comes_from_everywhere_and_is_described(gateway, path, query, header, status):
    required = "start=1&end=2" if path in ("/morph", "/animation") else ""
    assert gateway.ask(f"{path}?{required}{query}", **header).status == status
    assert str(status) in build_openapi()["paths"][path]["get"]["responses"]


def test_every_route_is_described(gateway):
    """Nothing is found that is not described, but the page at / and the files of pages."""
    from serving.gateway.app import create_app
    from serving.settings import Settings

    routes = {rule.rule for rule in create_app(Settings()).url_map.iter_rules()}
    assert routes - {"/", "/static/<path:filename>"} == set(build_openapi()["paths"])


def test_the_limits_it_states_are_those_that_hold(gateway):
    for parameter in build_openapi()["paths"]["/generate"]["get"]["parameters"]:
        schema = parameter["schema"]
        for edge, step in (("minimum", -1), ("maximum", 1)):
            if parameter["in"] == "query" and parameter["name"] != "version" and edge in schema:
                assert gateway.ask(f"/generate?{parameter['name']}={schema[edge]}").status == 200
                assert gateway.ask(f"/generate?{parameter['name']}={schema[edge] + step}").status == 400


def test_the_longest_text_for_seeds_is_as_long_as_it_states(gateway):
    (seeds,) = (one for one in build_openapi()["paths"]["/grid"]["get"]["parameters"] if one["name"] == "seeds")
    longest = ",".join([f"{MAX_SEED}-{MAX_SEED}"] * MAX_TILES)
    assert gateway.ask(f"/grid?seeds={longest}").status == 200
    assert len(longest) == seeds["schema"]["maxLength"]
