"""`paint` and its client with a fake batch server."""

import hashlib
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from serving.paint.client import PictureClient, Secrets
from serving.paint.command import main
from serving.paint.files import Layout, open_file
from serving.paint.manifest import Manifest
from serving.paint.output_folder import CALL_SEEDS
from serving.rendering.query import Picture
from serving.settings import SettingsError
from tests.conftest import BUNDLED, LIMIT_S, ROOT, full_pipe, wait_until
from tests.gateway_process import free_port, run_serving, shell
from tests.serving.paint.conftest import FakeBatchServer, Gate, content, data_of, paint, rows, running_paint


def test_paint_writes_one_file_and_one_manifest_row_per_seed(whole):
    files = {f"{seed // 10:06d}/{seed:09d}.png": data_of(seed) for seed in range(30)}
    assert {name: data for name, data in content(whole).items() if name != "manifest.jsonl"} == files
    assert rows(whole) == [
        {
            "seed": seed,
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "model_version": 1,
            "picture": f"/generate?seed={seed}&format=png&version=1",
        }
        for seed, (name, data) in enumerate(files.items())
    ]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("layout", ["files", "tar"])
def test_paint_ends_with_the_same_folder_when_killed_and_run_again(tmp_path, layout, end):
    flags = ("--layout", layout, "--per-folder", 10, "--streams", 1)
    gate = Gate(25)
    with FakeBatchServer(before=gate) as server:
        with running_paint(server, tmp_path / "twice", *flags) as process:
            wait_until(lambda: len(rows(tmp_path / "twice")) == 25, "images before the gate")
            process.send_signal(end)
            printed = process.communicate(timeout=LIMIT_S)[1]
            assert process.returncode == (130 if end == signal.SIGINT else -end)
        sentence = f"Stopped. Finished images are in {tmp_path}/twice; rerun the same command to resume.\n"
        assert printed.endswith(sentence) == (end == signal.SIGINT)
        gate.set()
        server.calls.clear()
        paint(server, tmp_path / "twice", *flags)
        assert server.calls == [list(range(25, 30))]
        paint(server, tmp_path / "once", *flags)
    assert content(tmp_path / "twice") == content(tmp_path / "once")


@pytest.mark.parametrize("layout", ["files", "tar"])
def test_documented_command_accepts_all_images_of_a_folder(server, tmp_path, layout):
    paint(server, tmp_path, "--layout", layout, "--per-folder", 10)
    blocks = re.findall(r"```sh\n(cd [^`]*sha256sum[^`]*)```", (ROOT / "docs" / "batch.md").read_text())
    script = blocks[layout == "tar"].partition("\n")[2]  # without cd
    assert subprocess.run(["bash", "-ec", script], cwd=tmp_path, check=True, capture_output=True).stdout == b""
    images = sorted(tmp_path.rglob("*.png"))
    assert [image.read_bytes() for image in images] == [data_of(seed) for seed in range(30)]
    images[0].write_bytes(b"x")
    checked = script if layout == "files" else script.splitlines()[-1]
    assert subprocess.run(["bash", "-ec", checked], cwd=tmp_path, check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("unwritable", [full_pipe, Path("/dev/full").open])
def test_paint_has_its_exit_status_when_stderr_is_unwritable(tmp_path, unwritable):
    gate = Gate(10)
    with FakeBatchServer(before=gate) as server, unwritable("wb") as stderr:
        with running_paint(server, tmp_path, stderr=stderr) as process:
            wait_until(lambda: len(rows(tmp_path)) == 10, "images before the gate")
            process.terminate()
            assert process.wait(LIMIT_S) == 130
        gate.set()
        server.version = 2
        with running_paint(server, tmp_path, stderr=stderr) as process:
            assert process.wait(LIMIT_S) == 3


def test_sigterm_ends_paint_when_stdout_is_blocked(server, tmp_path):
    with full_pipe("wb") as stdout, running_paint(server, tmp_path, stdout=stdout) as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("1 0x1 "), "a blocked write")
        process.terminate()
        assert process.wait(LIMIT_S) == 130


@pytest.mark.parametrize(("words", "status"), [(("paint",), 130), (("verify", "x"), 130), (("batch",), 0)])
def test_command_has_its_status_when_interrupted_while_it_is_imported(tmp_path, words, status):
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "sys.addaudithook(lambda event, found: event == 'import' and found[0] == 'grpc'\n"
        "    and signal.raise_signal(signal.SIGINT))\n"
    )
    done = run_serving(*words, wrapper=("env", f"PYTHONPATH={tmp_path}"))
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize("words", [("paint", "--seeds", "0:3", "--out", "out", "--target"), ("verify", "x"), ("run",)])
def test_command_blames_stdout_when_it_is_full(server, tmp_path, words):
    words = (*words, server.target) if "--target" in words else words
    wrapper = shell(f"cd {tmp_path} && export PYTHONPATH={shlex.quote(str(ROOT))} && exec > /dev/full")
    settings = {"port": free_port(), "model_base_path": BUNDLED.parent, "model_server": f"127.0.0.1:{free_port()}"}
    done = run_serving(*words, wrapper=wrapper, **settings)
    assert done.returncode == (2 if "verify" in words else 1)
    assert done.stderr.splitlines()[-1] == "stdout cannot be written: No space left on device; send it elsewhere."


@pytest.mark.parametrize("outputs", ["2> /dev/full", "2>&-", ">&- 2>&-", "< /dev/null"])
def test_paint_goes_on_without_progress_when_stderr_is_full_or_closed(server, tmp_path, outputs):
    out = tmp_path / "caf\u00e9"  # not in the ASCII of stdout
    words = ("paint", "--seeds", "0:30", "--out", out, "--target", server.target)
    done = run_serving(*words, wrapper=("sh", "-c", f'PYTHONIOENCODING=ascii TQDM_NCOLS=abc exec "$@" {outputs}', "sh"))
    assert (done.returncode, len(rows(out))) == (0, 30)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "ipv4:127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_paint_uses_no_proxy_when_the_server_is_on_this_machine(server, tmp_path, monkeypatch, host):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    paint(server, tmp_path, "--patience-s", 5, "--target", f"{host}:{server.port}")


@pytest.mark.parametrize("host", ["example.invalid", "a..b", "a" * 64])
@pytest.mark.parametrize("no_proxy", ["localhost", "localhost, {}"])
def test_paint_names_the_variable_when_a_proxy_is_away(tmp_path, monkeypatch, host, no_proxy):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", no_proxy.format(host[1:]))
    reason = ": its name has no address" if "{" in no_proxy else " (http_proxy is set): the connection was refused"
    printed = paint(SimpleNamespace(target=f"{host}:9090"), tmp_path, "--patience-s", 1, code=1)
    assert printed.endswith(f"{host}:9090 does not answer{reason}.\n")


@pytest.mark.parametrize("name", ["manifest.jsonl", "000000.tar.part", "000000/000000003.png.part"])
def test_paint_refuses_a_folder_when_another_process_uses_it(server, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    with open_file(tmp_path / name, append=True):
        output = paint(server, tmp_path, "--layout", "files" if "png" in name else "tar", code=1)
    assert output.endswith(f"{tmp_path}/{name}: another process writes it; wait until it ends.\n")


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_paint_keeps_finished_images_when_the_disk_is_full(server, small_disk):
    sentence = paint(server, small_disk, seeds="0:100", code=1).splitlines()[-1]
    assert sentence.startswith("The disk is full; free space, then rerun the command: ")
    assert sentence.endswith("No space left on device.")
    stored = rows(small_disk)
    assert stored
    assert all((small_disk / row["file"]).read_bytes() == data_of(row["seed"]) for row in stored)


def test_paint_sends_nothing_when_the_token_is_invalid(server, tmp_path):
    with pytest.raises(SettingsError, match="RINGO_TOKEN is not shown"):
        paint(server, tmp_path / "out", token="0123456789abcdef\udcff")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--seeds", ""], "--seeds"),
        (["--seeds", "5-2"], "'5-2' runs backwards at 5-2; write 2-5."),
        (["--seeds", "9:3"], "'9:3' has an empty range; write first-last."),
        (["--seeds", "0:10,5"], "'0:10,5' has a seed twice; give each once."),
        (["--seeds", "0-100000000"], "'0-100000000' is 100,000,001 seeds; at most 100,000,000 are allowed."),
        (["--seeds", "0:99999999999999999999"], "--seeds"),
        (["--shard", "4/4"], "'4/4'"),
        (["--size", "8"], "16 to 1024"),
        (["--format", "gif"], "'gif'"),
        (["--streams", "0"], "1 to 64"),
        (["--target", "grpc://localhost:9090"], "'grpc://localhost:9090'"),
        (["--out", "/dev/null"], "'/dev/null' is not valid; allowed is a folder"),
        (["--key", "k.pem"], "--certificate and --key go together"),
    ],
)
def test_paint_names_the_flag_when_its_value_is_invalid(tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit, match="2"):
        main(["--seeds=0:30", f"--out={tmp_path}/out", "=".join(flags)])
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_retries_repeat_no_image_and_patience_counts_waits_only(monkeypatch):
    clock = SimpleNamespace(ahead_s=0.0, monotonic=lambda: time.monotonic() + clock.ahead_s)
    monkeypatch.setattr("serving.paint.client.time", clock)
    with (
        FakeBatchServer(aborts=dict.fromkeys((0, 1), grpc.StatusCode.UNAVAILABLE)) as server,
        closing(PictureClient(server.target, Secrets(), patience_s=60)) as client,
    ):
        clock.ahead_s += 100  # the check
        pictures = client.paint(range(3), Picture(format="png", version=1))
        next(pictures)
        clock.ahead_s += 100  # the reader's
        client.end_silent_calls()
        assert [image.seed for image in pictures] == [1, 2]
        assert server.calls == [[0, 1, 2], [0, 1, 2], [1, 2]]


def test_a_silent_stream_ends_when_patience_does(tmp_path):
    gate = Gate(17)
    with FakeBatchServer(before=gate) as server:
        printed = paint(server, tmp_path, "--patience-s", "1", "--streams", "1", code=1)
        gate.set()
    assert "No image has come for" in printed.splitlines()[-1]
    assert len(rows(tmp_path)) == 17


def test_paint_says_after_a_second_why_it_waits_until_its_patience_ends(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent_port:  # accepts, and sends nothing
        silent = SimpleNamespace(target=f"127.0.0.1:{silent_port.getsockname()[1]}")
        first, last = paint(silent, tmp_path, "--patience-s", "2", code=1).splitlines()
    assert first == f"No image for 1 s: {silent.target} has not answered yet."
    assert last.endswith(f"{silent.target} sent nothing.")
    sentence = f"{silent.target} does not answer: the connection was refused."
    first, last = paint(silent, tmp_path, "--patience-s", "2", code=1).splitlines()
    assert first == f"No image for 1 s: {sentence}"
    assert last.startswith("No image has come for ")
    assert last.endswith(sentence)


@pytest.mark.parametrize(("layout", "aborts"), [("files", {2: grpc.StatusCode.UNAVAILABLE}), ("tar", {})])
def test_paint_does_not_blame_the_server_when_the_disk_is_slow(tmp_path, monkeypatch, layout, aborts):
    reads = []  # the thread of each
    clock = SimpleNamespace(ahead_s=0)
    clock.monotonic = lambda: reads.append(threading.current_thread().name) or time.monotonic() + clock.ahead_s
    monkeypatch.setattr("serving.paint.client.time", clock)

    def write_slowly(write, *arguments):
        clock.ahead_s, end = clock.ahead_s + 20, reads.count("report") + 2
        wait_until(lambda: reads.count("report") >= end or "(report," not in str(threading.enumerate()), "a report")
        write(*arguments)

    for owner, name, write in ((Layout, "_put", Layout._put), (Manifest, "replace", Manifest.replace)):
        monkeypatch.setattr(owner, name, lambda *arguments, write=write: write_slowly(write, *arguments))
    with FakeBatchServer(more=list(aborts), aborts=dict(aborts)) as server:
        assert "No image" not in paint(server, tmp_path, "--layout", layout, seeds="0:2")


@pytest.mark.parametrize(("layout", "seed"), [("files", 12), ("tar", 12), ("tar", 1)])
def test_paint_stops_when_the_version_changes_unless_any_is_allowed(tmp_path, layout, seed):
    one, several, flags = tmp_path / "one", tmp_path / "several", ("--layout", layout)
    with FakeBatchServer() as server:
        server.before = lambda at, context: setattr(server, "version", 2 if at >= seed else 1)
        sentence = "no such version of 'apple' loaded. Give --any-version to continue with the newest"
        assert sentence in paint(server, one, *flags, code=3).splitlines()[-1]
        assert [row["model_version"] for row in rows(one)] == [1] * seed
        paint(server, one, *flags, "--any-version")
        server.version = 1
        paint(server, several, *flags, "--any-version")
    paint(server, several, *flags, "--patience-s", 1)  # checks every file, and needs no server
    assert content(one) == content(several)
    assert [row["model_version"] for row in rows(several)] == [1] * seed + [2] * (30 - seed)
    assert rows(several)[29]["sha256"] == hashlib.sha256(data_of(29, version=2)).hexdigest()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"spoilt": {"data": b"spoilt"}}, "{} sent seed 0 with a wrong SHA-256; rerun the command."),
        ({"spoilt": {"seed": 5}}, "{} sent seed 5 of version 1, not seed 0 of version 1; rerun the command."),
        ({"spoilt": {"model_version": 3}}, "{} sent seed 0 of version 3, not seed 0 of version 1; rerun the command."),
        ({"version": 0}, "{} named no version of its model; check --target."),
        ({"aborts": {0: grpc.StatusCode.UNAUTHENTICATED}}, "{} answered UNAUTHENTICATED: for a moment"),
    ],
)
def test_paint_ends_and_keeps_no_image_when_refused_or_sent_another(tmp_path, fault, sentence):
    with FakeBatchServer(**fault) as server:
        assert paint(server, tmp_path, code=1).splitlines()[-1] == sentence.format(server.target)
    assert list(content(tmp_path)) == ["manifest.jsonl"]


def test_paint_ends_with_a_sentence_when_more_images_come_than_seeds(tmp_path):
    with FakeBatchServer(more=[30]) as server:
        output = paint(server, tmp_path, code=1)
    assert output.splitlines()[-1] == f"{server.target} sent more images than seeds; check --target."


def test_as_many_calls_run_at_a_time_as_streams(tmp_path):
    calls = threading.Barrier(3, timeout=LIMIT_S)
    with FakeBatchServer(before=lambda seed, context: seed % CALL_SEEDS or calls.wait()) as server:
        paint(server, tmp_path, "--streams", 3, seeds=f"0:{3 * CALL_SEEDS}")
