"""What a request to the API server raises."""

import asyncio
import ssl

import aiohttp
from pydantic_core import from_json

from finetune_api.base import Object

_STRICT = range(80, 95)  # of X509_V_ERR_*, from X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA on
_LONGEST_PAUSE = 30.0  # s; a longer Retry-After is not honoured
TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""The exceptions of a request that got no response. The caller tries again later."""


class ApiError(Exception):
    """The API server refused a request.

    `code` is the HTTP status, `reason` the CamelCase reason of the Status object, and `retry_after`
    the delay in seconds that the server asked for.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.retry_after = retry_after


class CredentialsError(aiohttp.ClientConnectionError):
    """The credentials cannot be read or refreshed at the moment."""


class StrictCertificateError(aiohttp.ClientConnectionError):
    """The server's certificate is valid, except for what only strict verification demands."""


class InvalidResponseError(aiohttp.ClientConnectionError):
    """The response does not come from an API server, which is treated like no response."""


class InterruptedWriteError(aiohttp.ClientConnectionError):
    """The connection was lost after a write was sent; the server may have carried it out."""


def strict_error(error: Exception) -> StrictCertificateError | None:
    """Return the error for a certificate that only strict verification refuses, else None."""
    if not isinstance(error, ssl.SSLCertVerificationError) or error.verify_code not in _STRICT:
        return None
    return StrictCertificateError(
        f"a certificate of the API server does not follow RFC 5280 ({error.verify_message}); renew "
        "the cluster's authority, or set FINETUNE_STRICT_CERTIFICATES=false (in the chart: "
        "apiServer.strictCertificates)"
    )


def error_from_response(code: int, retry_after: str, body: bytes) -> ApiError:
    """Return the error for a refused request.

    Only a Status object is quoted, because the page of a proxy may contain the request's headers.
    """
    try:
        status = from_json(body)
    except ValueError:
        status = None
    try:
        pause = min(float(retry_after or "0"), _LONGEST_PAUSE)
    except ValueError:
        pause = 0.0  # Proxies may send a date.
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"message": f"HTTP {code} without a Status of Kubernetes"}
    return error_from_status(code, status, pause)


def error_from_status(code: int, status: Object, retry_after: float = 0.0) -> ApiError:
    """Return the error that a Status object describes."""
    message = status.get("message", f"HTTP {code}")
    return ApiError(code, status.get("reason", ""), message, retry_after)
