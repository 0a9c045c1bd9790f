"""The aiohttp session for an API server: TLS, proxy, credentials, and the rules for writes."""

import ssl
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.connector import Connection

from finetune_client.configuration import Credentials, proxy_url
from finetune_client.errors import InterruptedWriteError, InvalidResponseError, strict_error

_READS = ("GET", "HEAD", "OPTIONS")
_TIMEOUT = 10.0  # s
CONNECT_TIMEOUT = 5.0  # s
_KEEP_ALIVE = 30.0  # s; servers close idle connections after a minute or more

Guard = Callable[[], object]
"""Raises an exception if a write must not be sent."""


def open_session(
    configuration: Any,
    *middlewares: aiohttp.ClientMiddlewareType,
    guard: Guard | None = None,
    response_class: type[aiohttp.ClientResponse] = aiohttp.ClientResponse,
) -> aiohttp.ClientSession:
    """Return a session that speaks to the API server of a configuration.

    `guard` is called for each write once its connection is open, right before the first byte. A
    write is never sent twice: if its connection is lost, InterruptedWriteError is raised.
    """
    credentials = Credentials(configuration)
    server_name = configuration.tls_server_name

    async def authenticate(
        request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers.update(await credentials.headers())
        assert isinstance(request, _Request)
        request.use(credentials.tls)
        if server_name:
            request.server_hostname = server_name
        return await handler(request)

    return aiohttp.ClientSession(
        # Unlimited, because the watches of many namespaces would take all slots from the requests.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(*middlewares, _translate_errors, authenticate),
        proxy=proxy_url(configuration),
        request_class=_guarded(guard) if guard else _Request,
        response_class=response_class,
    )


async def _translate_errors(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a write and from quoting the server, a middleware.

    aiohttp sends PUT and DELETE once more if the server closes a connection that was kept alive. It
    cannot know whether the server received the first request. Its message about a response that is
    not HTTP contains what was received.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorCertificateError as error:
        if strict := strict_error(error.certificate_error):
            raise strict from error
        raise
    except aiohttp.ClientConnectorError:
        raise  # Nothing was sent.
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if request.method in _READS:
            raise
        raise InterruptedWriteError(f"the connection was lost during a write ({error})") from error
    except aiohttp.ClientHttpProxyError as error:
        raise InvalidResponseError(f"the proxy refused the connection ({error.status})") from None
    except aiohttp.ClientResponseError as error:
        name = type(error).__name__
        raise InvalidResponseError(f"the response is not valid HTTP ({name})") from None


class _Request(aiohttp.ClientRequest):
    """A request with the certificates of the moment, which calls a guard if it writes."""

    guard: Guard = staticmethod(lambda: None)

    def use(self, tls: ssl.SSLContext) -> None:
        """Use this context. A connection is reused only for requests with the same context."""
        self._ssl = tls

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Send the request on an open connection, new or reused.

        aiohttp closes the connection if this raises. The hooks of TraceConfig would leave it open.
        """
        if self.method not in _READS:
            self.guard()
        return await super().send(conn)


def _guarded(guard: Guard) -> type[_Request]:
    return type("_GuardedRequest", (_Request,), {"guard": staticmethod(guard)})
