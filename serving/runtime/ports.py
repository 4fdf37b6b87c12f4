"""Listening sockets and their addresses."""

import errno
import os
import socket

from serving.settings import SettingsError

# Connections that wait for accept(). With the default, 128, some of 300 clients at once would retry after a second.
BACKLOG = 2048
OUR_HOST = "a name or address of this machine"


def listen(host: str, port: int, *, variable: str, host_variable: str = "RINGO_HOST") -> socket.socket:
    """Return a socket that listens on `host`; `::` has both families.

    Raises SettingsError, naming `variable` if the port is taken or not permitted, else `host_variable`.
    """
    try:
        # create_server would lose the reason why the name has no address.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)  # localhost is 127.0.0.1
        both_families = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=both_families)
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: not a name at all, such as 64 letters
        reason = getattr(error, "strerror", "not a valid name")
        raise SettingsError(host_variable, host, f"{OUR_HOST}: {reason}") from error
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EPERM):
            fault = "already in use" if error.errno == errno.EADDRINUSE else "not permitted"
            sentence = f"Port {port} is {fault} on {host}; set {variable} to another."
            raise SettingsError(variable, sentence=sentence) from error
        reason = os.strerror(error.errno or 0)  # Python 3.11's own text repeats the address
        raise SettingsError(host_variable, host, f"{OUR_HOST}: {reason}") from error


def address_of(listener: socket.socket) -> str:
    """Return the address of `listener`; of a link-local one with its interface."""
    return socket.getnameinfo(listener.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]


def with_port(host: str, port: int) -> str:
    """Return `host`:`port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
