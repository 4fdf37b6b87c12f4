"""`fit` with few flags: choices, output, resuming and the run folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import BUNDLED, ROOT, draw_photo, needs_permissions
from training.__main__ import main
from training.export.command import export
from training.fit.folder import lock_run
from training.fit.run import load_source
from training.model.checkpoints import load_generator
from training.model.sampling import image_grid
from training.records import read_batches_done, write_record

HISTORY = "step,g_loss,d_loss,d_real,d_generated\n"
KID = "step,kid_x1000,std,minutes\n"
NO_ZIP = "run/checkpoint.npz cannot be read (File is not a zip file); restore it from"
QUICK = ("--log-every", "1", "--no-jit-compile", "--discriminator", "plain", "--no-keep-best")


def fit(photos, run, *flags):
    return main(["fit", "--photos", str(photos), "--out", str(run), *QUICK, *flags])


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_dry_run_prints_plan_and_duration_and_writes_nothing(photos, tmp_path, capsys):
    files = sorted(tmp_path.rglob("*"))
    assert fit(photos, tmp_path / "run", "--dry-run", "--batch-size", "4", "--preset", "cpu") == 0
    output = capsys.readouterr().out
    assert re.search(r"\n  batch_size +4 +from the command line\n", output)
    assert re.search(r"\n  beta_1 +0.5 +for a plain discriminator\n", output)
    for name in ("image_size", "preset", "jit_compile", "steps"):
        assert f"\n  {name} " in output
    assert "32     " in output.split("image_size")[1].splitlines()[0]  # the photos have 40 px
    assert "100,000 images" in output
    assert "This takes about" in output
    assert "KID" not in output  # it was not measured at 32 px
    assert "50 photos are few: images may become copies" in output
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(("flags", "is_advised"), [((), True), (("--no-correct-black-level",), False)])
def test_fit_names_the_flag_when_photos_have_grey_shadows(tmp_path, monkeypatch, capsys, flags, is_advised):
    monkeypatch.setattr("training.fit.run.train", Mock(return_value=1))
    (folder := tmp_path / "photos").mkdir()
    for shade in range(60):
        Image.new("RGB", (32, 32), (190 + shade, 60, 50 * (shade % 4 == 0))).save(folder / f"{shade}.png")
    assert fit(folder, tmp_path / "run", "--steps", "1", *flags) == 0
    advice = "About 25% of the photos have no black pixels, only grey ones."
    assert (advice in capsys.readouterr().out) == is_advised


def test_same_command_resumes_with_the_settings_of_the_run(photos, run, capsys):
    config = config_of(run) | {"memory_limit_mib": 77}  # a new run would have more, and a batch size of 16
    write_record(run / "config.json", config)
    np.savez(run / "best.npz", step=2)  # a kill interrupted its measurement; later the run had --no-keep-best
    assert fit(photos, run, "--steps", "5") == 0
    output = capsys.readouterr().out
    assert "Resuming at batch 4." in output
    assert "settings for" not in output
    assert "All 5 batches are done." in output
    assert config_of(run) == config | {"steps": 5}


def test_dry_run_changes_nothing_when_the_run_exists(photos, small_run, capsys):
    before = {p: p.stat().st_mtime_ns for p in small_run.rglob("*")}
    assert main(["fit", "--photos", str(photos), "--out", str(small_run), "--dry-run", "--steps", "9"]) == 0
    assert "is at batch 4 of 9. Settings without a flag come from its config.json." in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in small_run.rglob("*")} == before


def test_run_keeps_the_layers_of_its_source_when_grown(photos, small_run, tmp_path):
    run = tmp_path / "grown"
    assert fit(photos, run, "--steps", "1", "--grow-from", str(small_run), "--learning-rate", "1e-8") == 0
    assert config_of(run)["image_size"] == 64
    grown, source = load_generator(run).network, load_generator(small_run).network
    for name in ("dense", "upsample_conv_8", "upsample_conv_16"):
        kernels = [network.get_layer(name).get_weights()[0] for network in (source, grown)]
        np.testing.assert_allclose(*kernels, atol=1e-5)
    text = (run / "grown_from.json").read_text()
    record = json.loads(text)
    assert (record["run"], record["batch"], record["config"]["image_size"]) == ("small", 4, 32)
    assert str(small_run) not in text
    assert fit(photos, run, "--steps", "2", "--grow-from", str(small_run)) == 0


def test_run_starts_with_the_images_of_the_model_it_starts_from(photos, small_model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "grown_from.json").touch()  # a start from another source was killed
    for steps in ("1", "2"):  # the same command resumes
        assert fit(photos, run, "--steps", steps, "--from", str(small_model)) == 0
    generate = tf.saved_model.load(str(small_model / "1")).signatures["generate"]
    grid = image_grid(generate(seeds=tf.range(64, dtype=tf.int64))["images"].numpy(), columns=8)
    with Image.open(run / "grids" / "0000000.png") as first_grid:
        assert np.abs(np.asarray(first_grid, int) - np.asarray(grid)).max() <= 2
    assert load_source(run)[2].started_from.model == "fruit, version 1"
    version = export(run, tmp_path / "started", licence="", attribution="")
    sentence = "It started from the weights of fruit, version 1 (Attribution: drawn by the tests; Licence of"
    assert sentence in (version / "model_card.md").read_text(encoding="utf-8")


def test_fit_does_not_import_keras_when_photos_are_too_few(folder, tmp_path):
    draw_photo(0).save(folder / "0.png")
    call = f"main(['fit', '--photos', {str(folder)!r}, '--out', {str(tmp_path / 'run')!r}]) == 2"
    script = f"import sys; from training.__main__ import main; sys.exit(not {call} or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


def test_fit_is_interrupted_when_ctrl_c_comes_during_the_import_of_keras(photos, tmp_path):
    script = f"""
import os, signal, sys
os.environ["TQDM_DISABLE"] = "1"  # its lines depend on the time
from training.__main__ import main

class CtrlC:
    def __del__(self):  # as in callbacks of the import system, Python drops a KeyboardInterrupt here
        signal.raise_signal(signal.SIGINT)

class Finder:
    def find_spec(name, *_):
        if name == "keras.src":
            CtrlC()

sys.meta_path.insert(0, Finder)
flags = {[*QUICK, "--image-size", "32", "--batch-size", "8", "--steps", "1"]!r}
sys.exit(main(["fit", "--photos", {str(photos)!r}, "--out", {str(tmp_path / "run")!r}, *flags]))
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (process.returncode, process.stderr) == (130, "python -m training fit: interrupted.\n")


def configure(**settings):
    return lambda folder: write_record(folder / "run" / "config.json", config_of(folder / "run") | settings)


def remove(pattern, keep=0):
    """Return a function that removes the files of `pattern` in the run, but the first `keep`."""

    def delete_files(folder):
        for file in sorted((folder / "run").glob(pattern))[keep:]:
            file.unlink()

    return delete_files


def keep_photos(count):
    return remove("../photos/*", keep=count)


def write(name, content):
    return lambda folder: (folder / "run" / name).write_text(content)


def save(name, **arrays):
    return lambda folder: np.savez(folder / "run" / name, **arrays)


def damage_version(folder):
    """Damage a copy of the bundled model: its card is in Latin-1, and its variables are unreadable."""
    shutil.rmtree(folder / "run")
    shutil.copytree(BUNDLED, folder / "run")
    (folder / "run" / "model_card.md").write_bytes(b"- Attribution: Ren\xe9\n")
    (folder / "run" / "variables" / "variables.index").write_bytes(b"damaged")


def move_photos_into_run(folder):
    (folder / "photos").rename(folder / "run" / "pictures")
    (folder / "photos").symlink_to("run/pictures")


def split_series(folder):
    for photo in sorted((folder / "photos").iterdir())[28:]:
        photo.rename(photo.with_stem(f"b{photo.stem}"))


def lengthen_name(folder):
    (folder / "run").rename(folder / ("r" * 250))


@pytest.mark.parametrize(
    ("change", "out", "flags", "sentence"),
    [
        (None, "run", ("--batch-size", "9"), "batch_size is 9, but the run began with 8"),
        (keep_photos(55), "run", (), "The photos, their names, their decoding or a setting in config.json differ from"),
        (None, "run", ("--steps", "3"), "fit: steps is 3, but run is at batch 4 of 4; set it to 4 or more."),
        (write("photos.json", ""), "run", (), "photos.json"),
        (write("config.json", ""), "run", (), "config.json"),
        (save("checkpoint.npz", step=[1, 2]), "run", (), "run/checkpoint.npz cannot be read (only "),
        (write("checkpoint.npz", ""), "run", (), NO_ZIP),
        (remove("checkpoint.npz"), "run", (), "run has history.csv but no checkpoint.npz; restore it from a backup"),
        (remove("config.json"), "run", (), "run has checkpoint.npz but no config.json;"),
        (remove("photos.json"), "run", ("--dry-run",), "run has checkpoint.npz but no photos.json;"),
        (remove("c*.*"), "run", (), "run has history.csv but no config.json and no checkpoint.npz;"),
        (remove("history.csv"), "run", (), "run has checkpoint.npz but no history.csv;"),
        (remove("compute.json"), "run", ("--dry-run",), "run has checkpoint.npz but no compute.json;"),
        (write("kid.csv", f"{KID}2,50,1,1\n"), "run", (), "run has checkpoint.npz but no best.npz;"),
        (lambda f: (configure(keep_best=True)(f), save("best.npz", step=2)(f)), "run", (), "no row of batch 2 in kid"),
        (save("best.npz", step=5), "run", (), "run has checkpoint.npz but no checkpoint.npz of batch 5 or later; "),
        (write("history.csv", f"{HISTORY}1,?\n2,1,1,1,1\n"), "run", (), "run/history.csv is damaged in line 2; "),
        (write("history.csv", f"{HISTORY}1,1,1,1,inf\n"), "run", (), "history.csv is damaged in line 2; restore"),
        (write("history.csv", ""), "run", (), "Line 1 of run/history.csv is not step,g_loss,d_loss,d_real,"),
        (write("kid.csv", f"{KID}2,nan,1,1\n"), "run", (), "run/kid.csv is damaged in line 2; restore it"),
        (None, "new", ("--learning-rate=nan",), "learning_rate is nan; set it to a value from 1e-08 to 1.0."),
        (None, "photos/run", (), "so its images would become photos"),
        (None, "", (), "A path is empty; set it, or leave its flag out."),
        (None, ".", ("--new",), "--out . holds other runs, such as run; set it to a folder of its own."),
        (None, "new", ("--photos", "~root/no"), "The photo folder '/root/no' cannot be opened"),
        (None, "file", (), "file is not a folder; set --out to a folder."),
        (damage_version, "run", ("--new",), "--out run is in a version of a model, which never changes; set it"),
        (None, "run\udcff", (), "The name 'run\\udcff' is not UTF-8; choose another one."),
        (None, "link", (), "link is not a folder; set --out to a folder."),
        pytest.param(None, "locked/run", (), "may not write to locked; set", marks=needs_permissions),
        (keep_photos(49), "new", (), "has 49 usable photos, fewer than 50; add photos."),
        (keep_photos(49), "new", ("--dry-run",), "has 49 usable photos, fewer than 50; add photos."),
        (keep_photos(0), "new", ("--dry-run",), "has no files"),
        (None, "new", ("--size=256",), "more than 4 times; use larger photos or a smaller --size'.\n"),
        (None, "new", ("--latent-dim=1",), "latent_dim is 1; set it to a value from 2 to 4096."),
        (None, "new", ("--r1-gamma=1", "--discriminator=projected"), "--r1-gamma is for the plain discrimin"),
        (None, "new", ("--batch-size", "51"), "(6 more are held out) do not fill a batch of 51"),
        (split_series, "run", ("--new", "--holdout-fraction=0.125", "--batch-size=49"), "(8 more are held out) do not"),
        (lambda folder: (folder / "photos").rename(folder / "moved"), "new", (), "No such file or directory"),
        (None, "new", ("--grow-from", "nowhere"), "--grow-from nowhere has no config.json"),
        (None, "new", ("--grow-from", "run", "--latent-dim", "7"), "--latent-dim is 7, but run has 128;"),
        (None, "new", ("--grow-from", "run", "--preset", "gpu"), "--preset is gpu, but run has cpu; set it"),
        (None, "new", ("--from", "run"), "--from run has no saved_model.pb; set it to a model that"),
        (damage_version, "new", ("--from", "run", "--steps", "1"), "run is not a model that `export` wrote with its"),
        (None, "new", ("--from", "run", "--grow-from", "run"), "--from and --grow-from exclude each other;"),
        (None, "run", ("--from", "/nowhere"), "--from /nowhere has no config.json"),
        (None, "run", ("--grow-from", "run"), "run did not start from run; leave the flag out, or"),
        (None, "run", ("--new", "--grow-from", "run"), "--new would rename run with run in it; choose a new"),
        (lambda path: os.chdir(path / "run"), ".", ("--new", "--photos", "../photos"), "--new would rename . with "),
        (lengthen_name, "r" * 250, ("--new",), " cannot be renamed (File name too long); choose a new --out."),
        (move_photos_into_run, "run", ("--new",), "--new would rename run with photos in it; choose a new --out."),
        (configure(image_size=128), "new", ("--grow-from", "run", "--size=32"), "--size 32 is smaller than the 128 px"),
    ],
)
def test_fit_is_refused_with_one_sentence_and_writes_nothing(
    photos, small_run, tmp_path, monkeypatch, capsys, change, out, flags, sentence
):
    shutil.copytree(photos, tmp_path / "photos")
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    if change:
        change(tmp_path)
    monkeypatch.setattr("training.data.photos.PROGRESS_DELAY_S", 3600)  # a busy machine would show the progress
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert fit("photos", out, "--steps", "5", *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m training fit: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert "Measuring" not in captured.out
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_fit_is_refused_when_another_process_trains_in_the_folder(photos, small_run, run, capsys):
    with lock_run(run):
        assert fit(photos, run, "--steps", "5") == 2
    sentence = f"Another process trains in {run}; wait until it ends, or choose a new --out.\n"
    assert capsys.readouterr().err.endswith(sentence)
    assert read_files(run) == read_files(small_run)


def test_fit_removes_partial_files_of_a_killed_process_and_no_others(photos, run):
    others = [run / name for name in ("film.mp4.part", "photos/a.png.0123abcd.part", "0123abcd.part")]
    names = ("checkpoint.npz.0123abcd.part", "grids/progress.gif.89abcdef.part", "photos/.photos-1.u8.0123abcd.part")
    partials = [run / name for name in names]
    for file in (*others, *partials):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    (run / "folder.0123abcd.part").mkdir()
    assert fit(photos, run, "--steps", "4") == 0
    assert [file for file in (*others, *partials) if file.exists()] == others


@pytest.mark.parametrize(
    "names", [("config.json", "history.csv", "grids/photos.png"), ("photos.json",), ("compute.json",)]
)
def test_new_run_keeps_the_files_of_the_previous_one(photos, small_run, tmp_path, capsys, names):
    run = tmp_path / "run"
    for name in (".lock", *names):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(small_run / name, run / name)
    before = read_files(run)
    assert fit(photos, run, "--new", "--steps", "1", "--seed", "3") == 0
    assert "The progress line `fit:` shows the remaining time." in capsys.readouterr().out
    config = config_of(run)
    assert (config["image_size"], config["batch_size"], config["seed"]) == (32, 16, 3)
    assert read_batches_done(run / "checkpoint.npz") == 1
    assert read_files(tmp_path / "run-old-1") == before


def test_fit_is_refused_when_the_backend_cannot_train(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert fit(photos, tmp_path / "run") == 2
    sentence = "KERAS_BACKEND is 'torch', which is unknown or not installed; set it to tensorflow or jax."
    assert capsys.readouterr() == ("", f"python -m training fit: {sentence}\n")


TENSORFLOW_ERROR = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[64,128]")
JAX_ERROR = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


@pytest.mark.parametrize("error", [MemoryError(), TENSORFLOW_ERROR, JAX_ERROR])
def test_fit_ends_with_one_sentence_when_memory_is_exhausted(photos, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr("training.fit.command.fit", Mock(side_effect=error))
    assert fit(photos, tmp_path / "run") == 2
    sentence = "Memory is exhausted; set a smaller --batch-size or --size, or close other programs."
    assert capsys.readouterr().err == f"python -m training fit: {sentence}\n"


def test_printed_commands_work_when_pasted_where_they_were_printed(photos, small_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(small_run, tmp_path / "it's りんご 2026")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")  # of the tests

    def paste(line):
        shell = ["bash", "-c", f'make() {{ echo "$RINGO_MODEL_NAME: $RINGO_MODEL_BASE_PATH"; }}; {line}']
        return subprocess.run(shell, capture_output=True, text=True, check=True, timeout=240)

    assert main(["fit", "--photos", str(photos), "--out", "it's りんご 2026"]) == 0
    export = paste(capsys.readouterr().out.splitlines()[-1])
    assert export.stderr == ""
    assert (tmp_path / "models" / "it-s-2026" / "1" / "saved_model.pb").is_file()
    assert paste(export.stdout.splitlines()[-1]).stdout == f"it-s-2026: {tmp_path}/models/it-s-2026\n"
