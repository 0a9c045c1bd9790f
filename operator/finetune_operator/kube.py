"""Requests to the API server: dict in, dict out.

The requests are ours, because the typed models of the `kubernetes` package refuse or drop fields
newer than the client. Short requests go through `http1`, watches through aiohttp.

What is repeated here: whatever the server answers with 429 (it has not been carried out), and
reads. A write that failed otherwise may have happened: its caller looks again before it acts.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode

import aiohttp
from pydantic_core import from_json, to_json

from finetune_api.base import Object
from finetune_operator import http1
from finetune_operator.access import Credentials, open_session, tls_context

_PAGE = 500
_JSON, _MERGE = "application/json", "application/merge-patch+json"
_METADATA = f"{_JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1, {_JSON}"
_AGENT = "finetune-operator"
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
_TIMEOUT = 10.0  # s
_LIST_TIMEOUT = 60.0  # s; a page of large objects from a busy server
_PAUSES = (0.2, 0.5, 1.0, 2.0)  # s between repetitions
_LONGEST_PAUSE = 30.0  # s that a server may ask for in Retry-After
_ERROR_BYTES = 64 * 1024  # of a refused watch


class ApiError(Exception):
    """The API server refused; `code` is the HTTP status, `reason` its CamelCase word."""

    def __init__(self, code: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.retry_after = retry_after  # s


TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a request raises when the API server is away; the caller tries again."""


class Requests(Protocol):
    """What reconciling needs of the API server; `Kube` says what each of them does."""

    async def get(self, path: str, **query: str) -> Object:
        """GET."""

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        """GET of a collection."""

    async def create(self, path: str, body: Object, **query: str) -> None:
        """POST."""

    async def patch(self, path: str, body: Object) -> Object:
        """PATCH."""

    async def delete(self, path: str, body: Object) -> None:
        """DELETE."""


def backoff(first: float = 0.2, longest: float = 10.0) -> Iterator[float]:
    """Pauses for ever, growing, each its own so that many clients do not come back at once."""
    pause = first
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(pause * 2, longest)


def _always() -> float:
    return _TIMEOUT


Counted = Callable[[str, int | None], None]
"""Told of each request: its verb, and the status of the answer, None when none came."""


def uncounted(_verb: str, _code: int | None) -> None:
    """For clients of which nobody wants to know how often they ask."""


class _Answer(Protocol):
    @property
    def status(self) -> int: ...


_Answered = TypeVar("_Answered", bound=_Answer)


async def told(counted: Counted, verb: str, asked: Awaitable[_Answered]) -> _Answered:
    """The answer to a request, once it is counted."""
    try:
        answer = await asked
    except TRANSIENT:
        counted(verb, None)
        raise
    counted(verb, answer.status)
    return answer


class Kube:
    """A client of one API server."""

    def __init__(
        self,
        configuration: Any,
        guard: Callable[[], float] = _always,
        silence: float = 90.0,
        counted: Counted = uncounted,
    ) -> None:
        """`guard` is asked before each write: how many seconds it may take; it raises to forbid it.

        `silence`: seconds after which a watch is dead; bookmarks come about once a minute.
        """
        self._host, self._guard, self._silence = configuration.host, guard, silence
        self._counted = counted
        self._session = open_session(configuration)
        self._client = http1.Client(configuration.host, tls_context(configuration))
        self._credentials = Credentials(configuration)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
        await self._session.close()

    async def get(self, path: str, **query: str) -> Object:
        """GET; ApiError 404 when it is not there."""
        return _parse(await self._request("GET", path, query))

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        """All items, page by page, and the version of the list."""
        items: list[Object] = []
        query = {"limit": str(_PAGE), **query}
        while True:
            page = _parse(await self._request("GET", path, query))
            items += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = token

    async def create(self, path: str, body: Object, **query: str) -> None:
        """POST; little is asked for in return: what was made comes with a watch."""
        await self._request("POST", path, query, body)

    async def patch(self, path: str, body: Object) -> Object:
        """Merge patch."""
        return _parse(await self._request("PATCH", path, {}, body, _MERGE))

    async def delete(self, path: str, body: Object) -> None:
        """DELETE."""
        await self._request("DELETE", path, {}, body)

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Object]:
        """Events from a version on, until the server ends the stream; ApiError 410 when too old."""
        query |= {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = "300"
        url = f"{self._host}{path}?{urlencode(query)}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=self._silence)
        response = await told(self._counted, "watch", self._session.get(url, timeout=timeout))
        async with response:
            try:
                async for event in _events(response):
                    yield event
            finally:
                if response.connection and response.connection.transport:
                    # Left in the middle: a farewell of TLS would outlive this client.
                    response.connection.transport.abort()

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None = None,
        content_type: str = _JSON,
    ) -> bytes:
        for pause in _PAUSES:
            try:
                return await self._send(method, path, query, body, content_type)
            except ApiError as error:
                if error.code != 429 and (method != "GET" or error.code < 500):
                    raise
                pause = max(pause, error.retry_after)
            except TRANSIENT:
                if method != "GET":
                    raise
            await asyncio.sleep(pause * random.uniform(1.0, 1.25))
        return await self._send(method, path, query, body, content_type)

    async def _send(
        self, method: str, path: str, query: dict[str, str], body: Object | None, content_type: str
    ) -> bytes:
        guard = None if method == "GET" else self._guard
        seconds = _LIST_TIMEOUT if "limit" in query else _TIMEOUT
        if guard:
            seconds = min(guard(), seconds)
            # The server gives up too: what it has not begun by then never happens.
            query = query | {"timeout": f"{int(seconds * 1000)}ms"}
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {
            "Content-Type": content_type,
            "Accept": _METADATA if method == "POST" else _JSON,
            "User-Agent": _AGENT,
            **self._credentials.headers(),
        }
        sent = b"" if body is None else to_json(body)
        verb = "list" if "limit" in query else _VERBS[method]
        # Asked again: this process may have been paused while a connection was opened.
        asked = self._client.request(method, target, headers, sent, seconds, guard)
        answer = await told(self._counted, verb, asked)
        if answer.status >= 300:
            raise refusal(answer.status, answer.headers.get("retry-after", ""), answer.body)
        if not answer.headers.get("content-type", "").startswith(_JSON):
            raise _no_answer()
        return answer.body


def _no_answer() -> ConnectionError:
    """What is not JSON does not come from an API server: as if it were away."""
    return ConnectionError("the answer is not JSON")


def _parse(text: bytes) -> Object:
    try:
        answer: Object = from_json(text)
    except ValueError:
        try:
            answer = json.loads(text)  # that one gives up at 200 levels
        except (ValueError, RecursionError):
            raise _no_answer() from None
    return answer


def refusal(code: int, retry_after: str, body: bytes) -> ApiError:
    """Why it was refused. Only a Status is quoted: a proxy's page may hold anything."""
    try:
        status = from_json(body)
    except ValueError:
        status = None
    try:
        pause = min(float(retry_after or "0"), _LONGEST_PAUSE)
    except ValueError:
        pause = 0.0  # a date, as proxies send it
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"message": f"HTTP {code} without a Status of Kubernetes"}
    return _said(code, status, pause)


def _said(code: int, status: Object, pause: float) -> ApiError:
    return ApiError(code, status.get("reason", ""), status.get("message", f"HTTP {code}"), pause)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    """Of a watch; ApiError when it is refused, or ended by the server."""
    if response.status >= 400:
        retry_after = response.headers.get("Retry-After", "")
        text = await response.content.read(_ERROR_BYTES)
        raise refusal(response.status, retry_after, text)
    async for line in _lines(response.content):
        event = _parse(line)
        if event["type"] == "ERROR":
            raise _said(event["object"].get("code", 500), event["object"], 0.0)
        yield event


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length (the reader's own limit is 64 KiB)."""
    buffer = b""
    async for chunk in stream.iter_any():
        *whole, buffer = (buffer + chunk).split(b"\n")
        for line in whole:
            yield line
