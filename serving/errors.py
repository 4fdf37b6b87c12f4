"""Errors between a seed and an image.

Nothing here knows a protocol: each service has one table from these classes to its statuses.

    RingoError
    ├── InvalidRequest      one field of the request is refused
    ├── NotAuthenticated    the request lacks the token
    ├── UnknownVersion      the model server has no such version of the model loaded
    ├── ModelUnavailable    no model server, or none of its versions is loaded: try again soon
    ├── ModelTimeout        the model server did not answer within the limit
    ├── Overloaded          this server or the model server refuses more work for now: try again later
    ├── ModelMismatch       the model server answered something that is not this model's contract
    ├── ClientGone          the client has closed the connection
    └── Stopping            this server is stopping: another one continues
"""

MAX_SHOWN_CHARACTERS = 64  # three times the longest seed


class RingoError(Exception):
    """Base of all; its text is one sentence for the client."""


class InvalidRequest(RingoError):
    """One field of the request is refused; `field` and `value` are cut to MAX_SHOWN_CHARACTERS.

    None for a value says that the field is missing.
    """

    def __init__(self, field: str, value: str | None, allowed: str) -> None:
        self.field = _shown(field)
        self.value = None if value is None else _shown(value)
        self.allowed = allowed
        refused = f"{self.field} is missing" if value is None else f"{self.field}={self.value!r} is not valid"
        super().__init__(f"{refused}; allowed is {allowed}.")


class NotAuthenticated(RingoError):
    """The request lacks the token that this service requires."""


class UnknownVersion(RingoError):
    """The requested version is not loaded."""


class ModelUnavailable(RingoError):
    """There is no model server to ask, or it has no version of our model loaded."""


class ModelTimeout(RingoError):
    """The model server did not answer within the limit."""


class Overloaded(RingoError):
    """The limit of this server or of the model server is reached."""


class ModelMismatch(RingoError):
    """The model server's response does not fit the SavedModel contract: an operator's error."""


class ClientGone(RingoError):
    """The client has closed the connection."""


class Stopping(RingoError):
    """The server is stopping; nothing is wrong with the request or the model."""


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"
