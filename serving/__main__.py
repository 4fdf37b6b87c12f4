"""The serving side's command line: python -m serving {gateway,batch,model-server,run,paint,verify}."""

import argparse
import os
import sys
from pathlib import Path

from serving.settings import Settings, SettingsError

MISUSED = 2  # argparse's exit status for it, too

# gRPC reads both when it is imported.
GRPC_ENVIRONMENT = {
    # Threads of its own hand each event to the one that waits for it, unless it is told to let that one poll: an empty
    # call to a neighbour takes 0.34 instead of 0.65 ms, and 0.18 instead of 0.30 of the caller's processor.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    # While nobody waits, somebody has to look all the same, or a model server that is back goes unseen: 5 s by default.
    "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "200",
}


def main(argv: list[str]) -> int:
    """Run the named part and return its exit status; 2 after one sentence on stderr if a setting can't be used."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Turn a seed into a picture.",
        epilog="The gateway's and the launcher's settings are the RINGO_ variables of serving/settings.py.",
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="{gateway,batch,model-server,run,paint,verify}")
    parts.add_parser("gateway", help="answer HTTP, asking a model server for the pixels")
    parts.add_parser("batch", help="answer gRPC, many pictures a call, asking a model server for the pixels")
    parts.add_parser("model-server", help="serve a SavedModel as TensorFlow Serving does", add_help=False)
    parts.add_parser("run", help="start a model server and the gateway; one Ctrl-C ends both")
    parts.add_parser("paint", help="many pictures into a folder, over gRPC; resumes", add_help=False)
    verify = parts.add_parser("verify", help="render PNGs again, and say whether they are what they say")
    verify.add_argument("files", nargs="+", type=Path, metavar="FILE")
    chosen, rest = parser.parse_known_args(argv)
    if rest and chosen.part not in ("model-server", "paint"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return _run_part(chosen, rest)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("serving.pb"):
            raise
        print("serving/pb is not there yet: `make stubs` generates it from proto/.", file=sys.stderr)
        return MISUSED
    except SettingsError as error:
        print(error, file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:  # before the part itself listens for it
        return 0


def _run_part(chosen: argparse.Namespace, argv: list[str]) -> int:
    """Import and run one part; the others stay unloaded: the model server brings TensorFlow, the gateway must not."""
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if chosen.part == "model-server":
        from serving.model_server.server import main as serve_model

        return serve_model(argv)
    if chosen.part == "paint":
        from serving.paint.command import main as paint

        return paint(argv)
    settings = Settings.from_environment(os.environ)
    if chosen.part == "run":
        from serving.run import run

        return run(settings)
    if chosen.part == "batch":
        from serving.batch.server import serve as serve_batch

        serve_batch(settings)
        return 0
    if chosen.part == "verify":
        from serving.paint.verify import verify

        return verify(chosen.files, settings)
    from serving.gateway.server import serve

    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
