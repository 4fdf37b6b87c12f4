"""Taking a port, or saying in one sentence why not."""

import os
import socket

from serving.settings import SettingsError


def listen(host: str, port: int, *, variable: str, value: str) -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises SettingsError, in the name of the `variable` whose `value` chose the port, if it is taken or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        # Python 3.11 adds an address to some texts; a name that can't be resolved has codes of its own.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise SettingsError(variable, value, f"a port that is free on {host}: {reason}") from error
