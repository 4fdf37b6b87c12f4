"""Who may run code in the embedded model server: nobody but the owner of a key, if one is given."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from serving.model_client.messages import get_model_status_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc
from serving.model_server.signed_version import verified_copy
from serving.model_server.versions import VersionRefused
from serving.run import model_server_command
from serving.settings import Settings
from tests.conftest import LIMIT_S, ROOT, command, ended_afterwards, wait_until
from tests.gateway_process import environment, free_port
from tests.hosted_model_server import from_latents, images, save_model
from training.errors import ExportError
from training.export.signing import read_private_key, sign_version

KEY = Ed25519PrivateKey.generate()
FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"", "assets.extra/caf\udce9 林檎": b"x"}


def pem(key: object, encryption: object = NoEncryption()) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def public_pem(key: object) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def version(tmp_path) -> Path:
    """A signed version folder of three files."""
    folder = tmp_path / "models" / "7"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sign_version(folder, KEY)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_loaded_is_a_private_copy_of_what_was_signed(version):
    signed = {name: content for name, content in contents(version).items() if not name.startswith("SHA256SUMS")}
    with verified_copy(version, KEY.public_key()) as copy:
        (version / "saved_model.pb").write_bytes(b"exchanged after the check")
        assert contents(copy) == signed
        assert copy.name == "7"
        assert copy.parent.stat().st_mode & 0o777 == 0o700
    assert not copy.parent.exists()


def append_a_line(version: Path) -> None:
    with (version / "SHA256SUMS").open("ab") as file:
        file.write(b"0" * 64 + b"  more\n")


def sign_lines(line: str) -> Callable[[Path], None]:
    def sign(version: Path) -> None:
        (version / "SHA256SUMS").write_text(line)
        (version / "SHA256SUMS.sig").write_bytes(KEY.sign(line.encode()))

    return sign


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(version: Path) -> None:
        (version / name).rename(version.parent / "aside")
        make(version / name)

    return replace


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no digests": (lambda version: (version / "SHA256SUMS").unlink(), "'SHA256SUMS' can't be read (No such file"),
    "no signature": (lambda version: (version / "SHA256SUMS.sig").unlink(), "'SHA256SUMS.sig' can't be read (No such"),
    "another's key": (lambda version: sign_version(version, Ed25519PrivateKey.generate()), "SHA256SUMS.sig is not the"),
    "half a signature": (
        lambda version: (version / "SHA256SUMS.sig").write_bytes((version / "SHA256SUMS.sig").read_bytes()[:32]),
        "SHA256SUMS.sig is not the signature of SHA256SUMS by the key of --verify-key.",
    ),
    "a longer signature": (
        lambda version: (version / "SHA256SUMS.sig").write_bytes((version / "SHA256SUMS.sig").read_bytes() + b"\n"),
        "SHA256SUMS.sig is not the signature",
    ),
    "a line more": (append_a_line, "SHA256SUMS.sig is not the signature"),
    "a file less": (lambda version: (version / "saved_model.pb").unlink(), "'saved_model.pb' can't be read (No such"),
    "a file more": (
        lambda version: (version / "variables" / "a\x1b]0;b").touch(),
        r"'variables/a\x1b]0;b' is not among the files that were signed.",
    ),
    "a link more": (lambda version: (version / "link").symlink_to("saved_model.pb"), "'link' is not among the files"),
    "a changed file": (
        lambda version: (version / "saved_model.pb").write_bytes(b"Graph"),
        "'saved_model.pb' is another than the one that was signed.",
    ),
    "a link in place of a file": (
        in_place_of("saved_model.pb", lambda path: path.symlink_to("../aside")),
        "'saved_model.pb' can't be read (Too many levels of symbolic links).",
    ),
    "a fifo in place of a file": (in_place_of("saved_model.pb", os.mkfifo), "'saved_model.pb' is not a regular file."),
    "a folder in place of a file": (in_place_of("saved_model.pb", Path.mkdir), "'saved_model.pb' is not a regular"),
    "a file without end": (
        in_place_of("saved_model.pb", lambda path: (path.touch(), os.truncate(path, 2**42))),
        "'saved_model.pb' has more than 4294967296 bytes.",
    ),
    "a path out of the folder": (sign_lines(f"{'0' * 64}  ../aside\n"), "SHA256SUMS has a line that names no file"),
    "an absolute path": (sign_lines(f"{'0' * 64}  /etc/passwd\n"), "SHA256SUMS has a line that names no file"),
    "no digest list": (sign_lines("apple\n"), "SHA256SUMS has a line that names no file of the folder: 'apple'."),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_version_that_was_tampered_with_is_refused_in_one_sentence(version, how):
    tamper, sentence = TAMPERED[how]
    tamper(version)
    with pytest.raises(VersionRefused) as refused, verified_copy(version, KEY.public_key()):
        pass
    assert str(refused.value).startswith(sentence)
    assert str(refused.value).isprintable()


def test_openssl_and_sha256sum_check_a_signed_version(version, tmp_path):
    (tmp_path / "public.pem").write_bytes(public_pem(KEY))
    openssl = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(tmp_path / "public.pem"), "-rawin"]
    for checked in ([*openssl, "-in", "SHA256SUMS", "-sigfile", "SHA256SUMS.sig"], ["sha256sum", "-c", "SHA256SUMS"]):
        if shutil.which(checked[0]) is None:
            pytest.skip(f"no {checked[0]} on the PATH")
        done = subprocess.run(checked, cwd=version, capture_output=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "--sign is '{path}': No such file or directory."),
        (b"apple", "--sign is '{path}': allowed is a PEM file with a private Ed25519 key without a passphrase, as "),
        (public_pem(KEY), "--sign is '{path}': allowed is"),
        (pem(KEY, BestAvailableEncryption(b"secret")), "--sign is '{path}': allowed is"),
        (pem(generate_private_key(SECP256R1())), "--sign is '{path}': allowed is"),
    ],
    ids=["missing", "no PEM", "public", "with a passphrase", "of another kind"],
)
def test_a_key_that_cannot_sign_is_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError) as caught:
        read_private_key(path)
    assert str(caught.value).startswith(sentence.format(path=path))


@pytest.mark.parametrize("content", [None, b"apple", pem(KEY), public_pem(generate_private_key(SECP256R1()))])
def test_a_key_that_cannot_verify_is_one_sentence(tmp_path, content):
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    run = {"command": command("serving", "run"), "env": environment(model_verify_key=path)}
    server = {"command": command("serving", "model-server", "--verify-key", path), "env": environment()}
    for part in (run, server):
        done = subprocess.run(
            part["command"], env=part["env"], capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{str(path)!r}" in done.stderr.splitlines()[-1]
        assert "with a public Ed25519 key" in done.stderr.splitlines()[-1]


def test_who_verifies_gets_the_embedded_model_server(tmp_path, monkeypatch, capsys):
    genuine = tmp_path / "tensorflow_model_server"
    genuine.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = model_server_command(Settings(model_verify_key=Path("key.pem")))
    assert chosen[1:4] == ["-m", "serving", "model-server"]
    assert chosen[chosen.index("--verify-key") + 1] == "key.pem"
    assert "the genuine one can't verify" in capsys.readouterr().out


def test_the_model_server_goes_on_with_what_it_has_and_takes_what_was_signed(tmp_path):
    (tmp_path / "public.pem").write_bytes(public_pem(KEY))
    models = tmp_path / "models"

    def publish(number: int, shade: int, *, signed: bool) -> None:
        aside = models / f".{number}"
        save_model(aside, shade)
        if signed:
            sign_version(aside, KEY)
        aside.rename(models / str(number))

    publish(1, 10, signed=True)
    port, log = free_port(), tmp_path / "log"
    flags = ("--model-base-path", models, "--port", port, "--poll-interval-s", "0.05")
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command("serving", "model-server", *flags, "--verify-key", tmp_path / "public.pem"),
            stderr=stderr,
            cwd=ROOT,
        )
    with ended_afterwards(process), grpc.insecure_channel(f"localhost:{port}") as channel:
        predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "apple"

        def shade() -> int:
            return int(images(predictions.Predict(from_latents(), timeout=LIMIT_S))[0, 0, 0, 0])

        def statuses() -> dict[int, object]:
            answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=LIMIT_S)
            return {status.version: status for status in answer.model_version_status}

        wait_until(lambda: "serving apple" in log.read_text(), "model server")
        publish(2, 20, signed=False)
        wait_until(lambda: 2 in statuses() and statuses()[2].state == 50, "the end of version 2")
        assert statuses()[2].status.error_message == "'SHA256SUMS.sig' can't be read (No such file or directory)."
        assert shade() == 10
        publish(3, 30, signed=True)
        wait_until(lambda: shade() == 30, "version 3")
    assert "version 2 in" in log.read_text()
    assert "Traceback" not in log.read_text()
