"""Taking a port, or saying in one sentence why not."""

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
        raise SettingsError(variable, value, f"a port that is free on {host}: {error.strerror}") from error
