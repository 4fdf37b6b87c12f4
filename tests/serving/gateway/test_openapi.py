"""The OpenAPI description, tested by schemathesis; `make fuzz` sends 20,000 requests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serving.gateway.app import create_app
from serving.settings import Settings

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


def test_openapi_describes_every_route_except_pages(gateway):
    routes = {rule.rule for rule in create_app(Settings()).url_map.iter_rules()}
    described = json.loads(gateway.ask("/openapi.json").body)
    assert described["openapi"].startswith("3.1.")
    pages = {"/", "/favicon.ico", "/static/<path:filename>"}
    assert {re.sub(r"<([^:>]*:)?(\w+)>", r"{\2}", rule) for rule in routes - pages} == set(described["paths"])
