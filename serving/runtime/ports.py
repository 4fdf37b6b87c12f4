"""Listening sockets, and one sentence if a port cannot be used."""

import errno
import os
import socket

from serving.settings import SettingsError

# Connections that wait for accept(). With the default, 128, some of 300 clients at once would retry after a second.
BACKLOG = 2048
OUR_HOST = "a name or address of this machine"


def listen(host: str, port: int, *, variable: str, value: str, host_variable: str = "RINGO_HOST") -> socket.socket:
    """Return a socket that listens on `host` and `port`.

    Raises SettingsError: in the name of the `variable` whose `value` chose the port if that is taken or not ours, and
    of `host_variable` if the host is not this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # create_server would lose the reason why the name has no address.
        (*_, address), *_ = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: not a name at all, such as 64 letters
        reason = getattr(error, "strerror", "not a valid name")
        raise SettingsError(host_variable, host, f"{OUR_HOST}: {reason}") from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # Python 3.11's own text repeats the address
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise SettingsError(host_variable, host, f"{OUR_HOST}: {reason}") from error
        raise SettingsError(variable, value, f"a port that is free on {host}: {reason}") from error
