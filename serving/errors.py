"""What can go wrong between a seed and a picture.

Nothing here knows a protocol: each edge keeps one table from these classes to its own statuses.

    RingoError
    ├── InvalidRequest      one field of the request is refused
    ├── NotAuthenticated    the caller doesn't bear the token
    ├── UnknownVersion      the model server has no such version of the model loaded
    ├── ModelUnavailable    no model server, or none of its versions is loaded: try again soon
    ├── ModelTimeout        the model server did not answer within the limit
    ├── Overloaded          this server or the model server refuses more work for now: try again later
    ├── ModelMismatch       the model server answered something that is not this model's contract
    ├── ClientGone          nobody waits for the answer any more
    └── Stopping            this server is about to end: another one goes on
"""

MAX_SHOWN_CHARACTERS = 64  # three times the longest seed; whoever sends a megabyte doesn't get it back


class RingoError(Exception):
    """Base of all of them; its text is one sentence fit for the caller."""


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
    """The caller doesn't bear the token that this service wants."""


class UnknownVersion(RingoError):
    """The version that was asked for is not loaded."""


class ModelUnavailable(RingoError):
    """There is no model server to ask, or it has no version of our model loaded."""


class ModelTimeout(RingoError):
    """The model server did not answer within the limit."""


class Overloaded(RingoError):
    """Here, or at the model server, is as much work as is taken at a time."""


class ModelMismatch(RingoError):
    """The model server's answer is not what the SavedModel's contract says: an operator's fault, not the caller's."""


class ClientGone(RingoError):
    """Whoever asked has closed the connection: there is nobody to answer."""


class Stopping(RingoError):
    """The server is about to end; nothing is wrong with the request or the model."""


def _shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "…"
