"""TLS files and the bearer token of gateway and batch server."""

import hmac
import os
import ssl
from pathlib import Path

from serving.errors import NotAuthenticated
from serving.settings import Settings, SettingsError


def check_tls(settings: Settings) -> None:
    """Raise SettingsError, naming the variable, if a TLS file is not usable."""
    check_pem_files(
        {"RINGO_TLS_CERTIFICATE": settings.tls_certificate, "RINGO_TLS_KEY": settings.tls_key},
        {"RINGO_TLS_CLIENT_CA": settings.tls_client_ca},
    )


def check_pem_files(pair: dict[str, Path | None], ca: dict[str, Path | None]) -> None:
    """Raise SettingsError for a certificate, key or CA that is not usable.

    Each has its name; files that are None are left out.
    """
    for name, path in (pair | ca).items():
        # A FIFO would block, or be read only once. pathlib raises in a folder that this user may not enter.
        if path is not None and not (os.path.isfile(path) and os.access(path, os.R_OK)):  # noqa: PTH113
            raise SettingsError(name, str(path), "a regular file in PEM that this user may read")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (certificate_name, certificate), (key_name, key) = pair.items()
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password="")
        except OSError as error:  # ssl.SSLError is one
            allowed = f"a certificate in PEM that fits {key_name}, a key without passphrase: {_reason(error)}"
            raise SettingsError(certificate_name, str(certificate), allowed) from error
    for name, path in ca.items():
        if path is not None:
            try:
                context.load_verify_locations(path)
            except OSError as error:
                raise SettingsError(name, str(path), f"certificates in PEM: {_reason(error)}") from error


def require_token(token: str | None, authorization: str | None) -> None:
    """Raise NotAuthenticated unless the header `authorization` has `token`; None admits all."""
    if token is None:
        return
    scheme, _, borne = (authorization or "").partition(" ")
    # In constant time, so that timing reveals nothing of the token.
    if scheme.lower() != "bearer" or not hmac.compare_digest(borne.encode(), token.encode()):
        raise NotAuthenticated("This service requires its token; send the header `authorization: Bearer ...`.")


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or "not in PEM"
