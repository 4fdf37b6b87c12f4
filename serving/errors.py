"""The errors of requests, independent of the protocol."""

import re

MAX_SHOWN_CHARACTERS = 64  # three times the longest seed


class RingoError(Exception):
    """Base class; the text is one sentence for the client."""

    retry_after_s: int | None = None  # when a retry may succeed

    @property
    def name(self) -> str:
        """The name in logs, metrics and responses, such as model_timeout."""
        return re.sub("(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


class InvalidRequest(RingoError):
    """A field of the request is invalid or missing.

    `value` is None if the field is missing. Field and value are cut to MAX_SHOWN_CHARACTERS. `fault` replaces the
    sentence about allowed values.
    """

    def __init__(self, field: str, value: str | None, allowed: str, fault: str = "") -> None:
        self.field = shortened(field)
        self.value = None if value is None else shortened(value)
        self.allowed = allowed
        self.fault = fault
        refused = f"{self.field} is missing" if value is None else f"{self.field}={self.value!r} is not valid"
        super().__init__(f"{self.field}={self.value!r} {fault}." if fault else f"{refused}; allowed is {allowed}.")


class NotAuthenticated(RingoError):
    """The request lacks the token that this service requires."""


class UnknownVersion(RingoError):
    """The model server has not loaded the requested version."""


class ModelUnavailable(RingoError):
    """No model server has a version of the model ready."""

    retry_after_s = 1  # CHANNEL_OPTIONS of model_client/client.py: a restarted server is noticed within a second


class ModelTimeout(RingoError):
    """The deadline passed before the model server answered."""


class Overloaded(RingoError):
    """The service or its model server is at a limit."""

    retry_after_s = 1


class ModelMismatch(RingoError):
    """The model server's response does not fit the SavedModel contract."""


class ClientGone(RingoError):
    """The client has closed the connection."""


class Stopping(RingoError):
    """The server is stopping; another one may answer."""

    retry_after_s = 1


def printable(text: str) -> str:
    """Return `text` with unprintable characters escaped."""
    if text.isprintable():  # nothing ends the line or moves a terminal's cursor
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def shortened(text: str, characters: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return `text`, cut to `characters`."""
    return text if len(text) <= characters else text[:characters] + "…"
