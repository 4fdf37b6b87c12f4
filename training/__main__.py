"""The command: python -m training fit | evaluate | export."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.config import TrainingConfig
from training.errors import TrainingError

BACKENDS = ("tensorflow", "jax")
STRATEGIES = ("single", "mirrored", "multi-worker")
INTERRUPTED = 130  # what shells say of a program that Ctrl-C ended


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; every field of TrainingConfig is a flag of `fit`."""
    parser = argparse.ArgumentParser(prog="python -m training", description=sys.modules["training"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    fit = commands.add_parser("fit", help="train a GAN on a folder of photos; the same command resumes")
    fit.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos, of any kind")
    fit.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder; holds all there is to resume")
    fit.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="single",
        help="who shares each batch: one device, all GPUs here, or those of all machines in TF_CONFIG; "
        "several do without XLA (default: single)",
    )
    for f in fields(TrainingConfig):
        kind: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if not isinstance(f.default, bool):
            kind = {"type": type(f.default), "metavar": f.name.rsplit("_", 1)[-1].upper()}
        fit.add_argument(
            "--" + f.name.replace("_", "-"),
            default=f.default,
            help=f"{f.metadata['help']} (default: {f.default})",
            **kind,
        )

    evaluate = commands.add_parser("evaluate", help="compare a run's pictures with photos; the model card quotes it")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="run folder of `fit`")
    evaluate.add_argument("--photos", type=Path, required=True, metavar="DIR", help="folder of photos to compare with")
    evaluate.add_argument("--count", type=int, default=1900, help="pictures of each kind (default: 1900)")

    export = commands.add_parser("export", help="write the generator of a run as the next model version")
    export.add_argument("run", type=Path, metavar="RUN", help="run folder of `fit`")
    export.add_argument("--to", type=Path, required=True, metavar="MODEL", help="model folder, such as models/apple")
    export.add_argument("--licence", default="not stated", help="licence of the weights, for the model card")
    export.add_argument("--attribution", default="not stated", help="whose photos they are, for the model card")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0 done, 2 refused with one sentence, 130 interrupted."""
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's greetings hide our own messages
    if options.command == "export":
        # Batches of eight threads round by their size, those of two do not (see training/servable.py).
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend not in BACKENDS or find_spec(backend) is None:
        print(f"KERAS_BACKEND is {backend!r}: allowed are {' and '.join(BACKENDS)}, installed.", file=sys.stderr)
        return 2
    try:
        if options.command == "fit":
            config = TrainingConfig(**{f.name: getattr(options, f.name) for f in fields(TrainingConfig)})
            from training.replicas import sharing  # imports Keras: 3 s that --help and bad flags need not wait
            from training.train import fit

            with sharing(options.strategy, options.out) as run:
                return 0 if fit(options.photos, run, config) >= config.steps else INTERRUPTED
        if options.command == "evaluate":
            from training.evaluate import evaluate

            for name, value in evaluate(options.run, options.photos, count=options.count).items():
                print(f"{name}: {value}")
            return 0
        from training.export import export

        version = export(options.run, options.to, licence=options.licence, attribution=options.attribution)
        print(f"Wrote {version}.")
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
