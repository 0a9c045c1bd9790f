"""Requests to the Kubernetes API server: dicts in, dicts out.

Objects are plain dicts, because the typed models of the `kubernetes` package refuse or drop fields
that are newer than the package.

Reads are repeated after a failure, and any request after 429, because the server has not carried it
out. A write that failed otherwise may have been carried out: its caller reads again before it acts.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
from pydantic_core import to_json
from yarl import URL

from finetune_api.base import Object
from finetune_client.decode import Convert, decode, decode_list
from finetune_client.errors import (
    TRANSIENT,
    ApiError,
    InvalidResponseError,
    error_from_response,
    error_from_status,
)
from finetune_client.session import CONNECT_TIMEOUT, open_session

JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1, {JSON}"
"""Accept header for objects without spec and status."""
PAGE = 50
"""Items in a page of a list. An object has up to 1.5 MB, and a page is received as a whole."""
_VERBS = {
    "GET": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_TIMEOUT = 10.0  # s
_LIST_TIMEOUT = 60.0  # s; a page of large objects from a busy server
_PAUSES = (0.2, 0.5, 1.0, 2.0)  # s between repetitions
_ERROR_BYTES = 64 * 1024  # of the body of a refused watch
_TARGET = re.compile(r"[!-~]+")
# The deadline of a request is set with asyncio.timeout: aiohttp rounds longer ones up to seconds.
_NO_DEADLINE = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)

Count = Callable[[str, int | None], None]
"""Called for each request with its verb and its HTTP status, None if no response came."""


def _count_nothing(_verb: str, _code: int | None) -> None:
    pass


def _whole(item: Object) -> Object:
    return item


class _Response(Protocol):
    @property
    def status(self) -> int: ...


_AnyResponse = TypeVar("_AnyResponse", bound=_Response)


async def counted(count: Count, verb: str, response: Awaitable[_AnyResponse]) -> _AnyResponse:
    """Await the response to a request and count it."""
    try:
        received = await response
    except TRANSIENT:
        count(verb, None)
        raise
    count(verb, received.status)
    return received


class Api:
    """A client of one API server."""

    def __init__(
        self,
        configuration: Any,
        *,
        guard: Callable[[], float] | None = None,
        count: Count = _count_nothing,
        timeout: float = _TIMEOUT,
        watch_timeout: float = 90.0,
        user_agent: str = "finetune-operator",
    ) -> None:
        """Create a client for a Configuration of the `kubernetes` package.

        `guard` is called before each write: it returns how many seconds the write may take, and
        raises an exception to forbid it. `timeout` is the time for one request in seconds.
        `watch_timeout` is the silence in seconds after which a watch is considered dead; the server
        sends a bookmark about once a minute.
        """
        self._host, self._guard, self._count = configuration.host.rstrip("/"), guard, count
        self._timeout, self._watch_timeout = timeout, watch_timeout
        self._agent = user_agent
        self._session = open_session(configuration, guard=guard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, path: str, **query: str) -> Object:
        """GET an object, or one page of a collection. ApiError 404 if it does not exist."""
        return decode(await self.request("GET", path, query))

    async def list_converted(
        self, path: str, convert: Convert, **query: str
    ) -> tuple[list[Any], str]:
        """Return what `convert` makes of each item as soon as it is decoded, and the version."""
        items: list[Any] = []
        query = {"limit": str(PAGE), **query}
        while True:
            page = decode_list(await self.request("GET", path, query), convert)
            items += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = token

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        """Return all items of a collection, fetched page by page, and the version of the list."""
        return await self.list_converted(path, _whole, **query)

    async def create(self, path: str, body: Object, **query: str) -> None:
        """POST an object. The response is not parsed: the caller's watch delivers the object."""
        await self.request("POST", path, query, body, accept=METADATA)

    async def post(self, path: str, body: Object, **query: str) -> Object:
        """POST and return the response, for dry runs and for subresources such as `token`."""
        return decode(await self.request("POST", path, query, body))

    async def patch(self, path: str, body: Object) -> Object:
        """Apply a merge patch and return the object."""
        return decode(await self.request("PATCH", path, {}, body, MERGE_PATCH))

    async def delete(self, path: str, body: Object | None = None) -> None:
        """DELETE an object or a collection; `body` is a DeleteOptions."""
        await self.request("DELETE", path, {}, body)

    async def watch(
        self, path: str, version: str = "", *, accept: str = JSON, **query: str
    ) -> AsyncIterator[Object]:
        """Yield the events from a version on until the server ends the stream.

        Without a version the objects that exist come first. ApiError 410 if the version is too old.
        """
        query = {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"} | query
        query.setdefault("timeoutSeconds", "300")
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT, sock_read=self._watch_timeout
        )
        opened = self._session.get(
            self._url(path, query),
            headers={"Accept": accept, "User-Agent": self._agent},
            timeout=timeout,
            allow_redirects=False,
        )
        response = await counted(self._count, "watch", opened)
        async with response:
            try:
                async for event in _events(response):
                    yield event
            finally:
                if response.connection and response.connection.transport:
                    # A watch that is left early must not wait for the closing handshake of TLS.
                    response.connection.transport.abort()

    async def request(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> bytes:
        """Return the body of the response. Raises ApiError, or one of TRANSIENT."""
        for pause in _PAUSES:
            try:
                return await self._send(method, path, query, body, content_type, accept)
            except ApiError as error:
                if error.code != 429 and (method != "GET" or error.code < 500):
                    raise
                pause = max(pause, error.retry_after)
            except TRANSIENT:
                if method != "GET":
                    raise
            await asyncio.sleep(pause * random.uniform(1.0, 1.25))
        return await self._send(method, path, query, body, content_type, accept)

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None,
        content_type: str,
        accept: str,
    ) -> bytes:
        seconds = _LIST_TIMEOUT if "limit" in query else self._timeout
        if method != "GET":
            # The session asks the guard once more: opening a connection can take long.
            seconds = min(self._guard(), seconds) if self._guard else seconds
            # The server gives up as well: a request that it has not begun by then never happens.
            query = query | {"timeout": f"{int(seconds * 1000)}ms"}
        headers = {
            "Content-Type": content_type,
            "Accept": accept,
            "Accept-Encoding": "identity",
            "User-Agent": self._agent,
        }
        exchange = self._exchange(
            seconds,
            self._session.request(
                method,
                self._url(path, query),
                data=None if body is None else to_json(body),
                headers=headers,
                timeout=_NO_DEADLINE,
                allow_redirects=False,
            ),
        )
        verb = "list" if "limit" in query else _VERBS[method]
        response = await counted(self._count, verb, exchange)
        if response.status >= 300:
            raise error_from_response(response.status, response.retry_after, response.body)
        if not response.content_type.startswith(JSON):
            raise InvalidResponseError("the response is not JSON")
        return response.body

    async def _exchange(
        self, seconds: float, sent: AbstractAsyncContextManager[aiohttp.ClientResponse]
    ) -> "_Received":
        """Wait for the response and its body; TimeoutError after `seconds`."""
        async with asyncio.timeout(seconds), sent as response:
            return _Received(
                response.status,
                response.headers.get("Content-Type", ""),
                response.headers.get("Retry-After", ""),
                await response.read(),
            )

    def _url(self, path: str, query: dict[str, str]) -> URL:
        target = f"{path}?{urlencode(query)}" if query else path
        if not _TARGET.fullmatch(target):
            raise ValueError(f"{target!r} is not a valid path of a request")
        return URL(self._host + target, encoded=True)


@dataclass(frozen=True)
class _Received:
    """What is needed of a response."""

    status: int
    content_type: str
    retry_after: str
    body: bytes


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    """Yield the events of a watch; ApiError if it is refused, or ended with an error."""
    if response.status >= 300:
        retry_after = response.headers.get("Retry-After", "")
        text = await response.content.read(_ERROR_BYTES)
        raise error_from_response(response.status, retry_after, text)
    async for line in _lines(response.content):
        event = decode(line)
        if event["type"] == "ERROR":
            raise error_from_status(event["object"].get("code", 500), event["object"])
        yield event


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield lines of any length; the stream's own limit is 64 KiB."""
    buffer = b""
    async for chunk in stream.iter_any():
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            yield line
