"""The serving side's command line: python -m serving {gateway,model-server,run}."""

import argparse
import os
import sys

from serving.settings import Settings, SettingsError

MISUSED = 2  # argparse's exit status for it, too


def main(argv: list[str]) -> int:
    """Run the named part and return its exit status; 2 after one sentence on stderr if a setting can't be used."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Turn a seed into a picture.",
        epilog="The gateway's and the launcher's settings are the RINGO_ variables of serving/settings.py.",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="{gateway,model-server,run}")
    parts.add_parser("gateway", help="answer HTTP, asking a model server for the pixels")
    parts.add_parser("model-server", help="serve a SavedModel as TensorFlow Serving does", add_help=False)
    parts.add_parser("run", help="start a model server and the gateway; one Ctrl-C ends both")
    chosen, rest = parser.parse_known_args(argv)
    if rest and chosen.part != "model-server":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run_part(chosen.part, rest)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:  # before the part itself listens for it
        return 0


def _run_part(part: str, argv: list[str]) -> int:
    """Import and run one part; the others stay unloaded: the model server brings TensorFlow, the gateway must not."""
    if part == "model-server":
        from serving.model_server import main as serve_model

        return serve_model(argv)
    settings = Settings.from_environment(os.environ)
    if part == "run":
        from serving.run import run

        return run(settings)
    from serving.http_server import serve

    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
