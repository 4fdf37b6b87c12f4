"""The reasons of failed connections: gRPC's text is long and names addresses."""

import grpc

# A part of gRPC's text, the reason, and whether waiting may help. The first that fits counts.
FAILURES = (
    ("errors resolving", "its name has no address", True),
    ("Connection refused", "the connection was refused", True),
    ("backend unhealthy", "it has no model ready, or is stopping; its log says why", True),
    ("HTTP proxy returned", "the proxy refused the connection", True),
    ("http1.x server", "it speaks HTTP/1, not gRPC", False),
    ("Failed parsing HTTP/2", "it does not speak gRPC", False),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS", False),
    ("certificate has expired", "its certificate has expired", False),
    ("certificate is not yet valid", "its certificate is not yet valid, or a clock is wrong", False),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not valid for this CA", False),
    ("Hostname Verification Check failed", "its certificate names another host", False),
    ("ALPN", "it speaks TLS, but not gRPC", False),
    ("Tls handshake failed", "the TLS handshake failed", True),
    ("Secure read failed", "it closed the connection after the TLS handshake", True),
    ("Socket closed", "it closed the connection", True),
    ("Connection reset", "it closed the connection", True),
    ("timed out before receiving SETTINGS", "it accepts connections, but sends nothing", True),
    ("tcp handshaker shutdown", "its address cannot be reached", True),
    (": connect: ", "its address cannot be reached", True),
    ("Failed to connect to remote host", "its address cannot be reached", True),
)


def connection_failure(error: grpc.RpcError) -> tuple[str, bool] | None:
    """Return why there is no connection, and whether waiting may help."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        for part, reason, may_help in FAILURES:
            if part in (error.details() or ""):
                return reason, may_help
    return None
