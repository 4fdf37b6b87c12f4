"""The command line: python -m serving {gateway,batch,model-server,run,paint,verify}."""

import argparse
import os
import signal
import sys
from pathlib import Path

from serving import __version__
from serving.runtime.limits import raise_open_files
from serving.runtime.output import OutputError, prepare_output, write_error
from serving.settings import Settings, SettingsError

INVALID, INTERRUPTED = 2, 130  # exit statuses; argparse has the same for invalid flags
MIN_FILES, FILES = 128, 4096  # open files: TensorFlow and gRPC take 30 to 60, each connection 1

# gRPC reads these when it is imported.
GRPC_ENVIRONMENT = {
    # By default, threads of gRPC's own hand events to the waiting thread: an empty call on the same machine takes 0.65
    # instead of 0.34 ms, and 0.30 instead of 0.18 ms of the client's CPU.
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    # While no call is waiting, gRPC polls for the return of a model server; the default is 5 s.
    "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS": "200",
    # Its own lines would block its threads on a full stderr; errors reach our log as statuses.
    "GRPC_VERBOSITY": "NONE",
}
# Variables of libraries, meant for other programs: each may break the start or all requests, as may those of tqdm. To
# the file in SSLKEYLOGFILE, Python would write the keys of TLS sessions.
FOREIGN = (
    "SCRIPT_NAME",
    "WEB_CONCURRENCY",
    "FORWARDED_ALLOW_IPS",
    "GUNICORN_PID",
    "FLASK_DEBUG",
    "PROMETHEUS_MULTIPROC_DIR",
    "prometheus_multiproc_dir",
    "OTEL_PYTHON_CONTEXT",
    "OTEL_PYTHON_TRACER_PROVIDER",
    "SSLKEYLOGFILE",
)


def main(argv: list[str]) -> int:
    """Run a command and return its exit status, 2 for invalid settings."""
    prepare_output()
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Turn seeds into images.",
        epilog="docs/settings.md lists the settings: environment variables that begin with RINGO_.",
    )
    parser.add_argument("--version", action="version", version=f"ringo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("gateway", help="serve images over HTTP")
    commands.add_parser("batch", help="serve many images per call over gRPC")
    commands.add_parser("model-server", help="serve a SavedModel as TensorFlow Serving does", add_help=False)
    commands.add_parser("run", help="start a model server and the gateway; Ctrl-C ends both")
    commands.add_parser("paint", help="write many images to a folder, over gRPC; a rerun resumes", add_help=False)
    verify = commands.add_parser("verify", help="render PNG files again and compare the bytes")
    verify.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a PNG file, a tar, or a folder of these")
    chosen, rest = parser.parse_known_args(argv)
    if rest and chosen.command not in ("model-server", "paint"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT, too: a shell's background job inherits an ignored one
        signal.signal(number, signal.default_int_handler)
    for name, value in GRPC_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in {*FOREIGN, *(name for name in os.environ if name.startswith("TQDM_"))} - {"TQDM_DISABLE"}:
        os.environ.pop(name, None)
    try:
        raise_open_files(MIN_FILES, FILES)
        return _run_command(chosen, rest)
    except (SettingsError, OutputError) as error:
        write_error(str(error))
        return INVALID if isinstance(error, SettingsError) or chosen.command == "verify" else 1  # 1: a different file
    except KeyboardInterrupt:  # before or after the command handles it
        return INTERRUPTED if chosen.command in ("paint", "verify") else 0  # servers end by a signal


def _run_command(chosen: argparse.Namespace, argv: list[str]) -> int:
    """Import and run one command: the gateway must not load TensorFlow."""
    if chosen.command == "model-server":
        from serving.model_server.server import main as serve_model

        return serve_model(argv)
    if chosen.command == "paint":
        from serving.paint.command import main as paint

        return paint(argv)
    settings = Settings.from_environment(os.environ)
    if chosen.command == "run":
        from serving.run import run

        return run(settings)
    if chosen.command == "verify":
        from serving.paint.verify import verify

        return verify(chosen.paths, settings)
    if chosen.command == "batch":
        from serving.batch.server import serve
    else:
        from serving.gateway.server import serve
    serve(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
