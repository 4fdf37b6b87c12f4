"""TLS files and the bearer token of gateway and batch server."""

import hmac
import ssl

from serving.errors import NotAuthenticated
from serving.settings import Settings, SettingsError


def check_tls(settings: Settings) -> None:
    """Raise SettingsError, naming the variable, if a TLS file is not usable."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except OSError as error:  # ssl.SSLError is one
        allowed = f"a certificate in PEM that fits RINGO_TLS_KEY, both readable: {_reason(error)}"
        raise SettingsError("RINGO_TLS_CERTIFICATE", str(settings.tls_certificate), allowed) from error
    if settings.tls_client_ca is not None:
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except OSError as error:
            allowed = f"readable certificates in PEM: {_reason(error)}"
            raise SettingsError("RINGO_TLS_CLIENT_CA", str(settings.tls_client_ca), allowed) from error


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
