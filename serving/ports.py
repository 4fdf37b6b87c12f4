"""Taking a port, or one that is handed over, or saying in one sentence why not."""

import os
import socket

from serving.settings import SettingsError

# Connections that wait to be taken, where the system allows as many. By default 128: of 300 that come at once the rest
# would wait a second to try again.
BACKLOG = 2048
FIRST_HANDED_OVER = 3  # after the three standard streams


def listen(host: str, port: int, *, variable: str, value: str) -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises SettingsError, in the name of the `variable` whose `value` chose the port, if it is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        # Python 3.11 adds an address to some texts; a name that can't be resolved has codes of its own.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise SettingsError(variable, value, f"a port that is free on {host}: {reason}") from error


def handed_over(port: int) -> socket.socket | None:
    """Return the socket that listens on `port` if whoever started this process has handed one over, as systemd does.

    Its owner keeps it open while one process ends and the next begins: callers wait meanwhile, and none is refused.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    for fd in range(FIRST_HANDED_OVER, FIRST_HANDED_OVER + int(os.environ.get("LISTEN_FDS", "0"))):
        taken = socket.socket(fileno=fd)
        if taken.family in (socket.AF_INET, socket.AF_INET6) and taken.getsockname()[1] == port:
            return taken
        taken.detach()
    return None
