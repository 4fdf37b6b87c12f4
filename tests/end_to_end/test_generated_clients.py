"""Generated clients of /openapi.json call a gateway, as in docs/http.md.

The generators are not among our requirements: `pip install openapi-python-client ruff` and
`npm install openapi-typescript openapi-fetch typescript@5 @types/node`, on the PATH, turn the tests on.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import LIMIT_S, ROOT


@pytest.mark.parametrize(
    ("language", "generator", "options", "folder", "suffix", "commands"),
    [
        (
            *("python", "openapi-python-client", "generate --output-path client --path", "client", "py"),
            "{python} program.py",
        ),
        (
            *("typescript", "openapi-typescript", "-o schema.d.ts", ".", "ts"),
            "tsc --strict --module nodenext --target es2022 --skipLibCheck program.ts && node program.js",
        ),
    ],
)
def test_generated_client_returns_the_bytes_of_an_image(
    gateway, tmp_path, language, generator, options, folder, suffix, commands
):
    found = shutil.which(generator)
    if found is None:  # no lock of ours has these tools of users, one of which needs npm
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
    run(commands.format(python=Path(found).with_name("python")), place)
    assert (place / "alice.png").read_bytes() == gateway.ask("/generate?name=alice&size=256").body
