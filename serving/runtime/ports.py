"""Listen on a port, or say in one sentence why that is not possible."""

import errno
import os
import socket

from serving.settings import SettingsError

# Connections that wait to be taken, where the system allows as many. By default 128: of 300 that come at once the rest
# would wait a second to try again.
BACKLOG = 2048
OUR_HOST = "a name or address of this machine"


def listen(host: str, port: int, *, variable: str, value: str, host_variable: str = "RINGO_HOST") -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises SettingsError: in the name of the `variable` whose `value` chose the port if that is taken or not ours, and
    of `host_variable` if the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # Not left to create_server, which loses the reason why there is no such name.
        (*_, address), *_ = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (socket.gaierror, UnicodeError) as error:  # the latter for what can be no name, such as 64 letters
        reason = getattr(error, "strerror", "not a valid name")
        raise SettingsError(host_variable, host, f"{OUR_HOST}: {reason}") from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # Python 3.11 adds an address to its own text
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise SettingsError(host_variable, host, f"{OUR_HOST}: {reason}") from error
        raise SettingsError(variable, value, f"a port that is free on {host}: {reason}") from error
