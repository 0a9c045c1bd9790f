"""A small HTTP/1.1 client for many short requests to one server (docs/adr/0014).

It does what an API server needs and nothing else: TLS, keep-alive, one request at a time on a
connection, bodies by length or in chunks. No redirects, cookies, proxies or compression.
"""

import asyncio
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_HEAD_MOST = 64 * 1024  # bytes
_IDLE = 30.0  # s; servers close idle connections after a minute or more
_CONNECT = 5.0  # s
_TARGET = re.compile(r"[!-~]+")


class ProtocolError(ConnectionError):
    """What came back is not HTTP/1.1, or ended in the middle."""


@dataclass(frozen=True)
class Answer:
    """A response; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One connection. `data_received` may get a response in pieces of any size."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[Answer] | None = None
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._chunks: list[bytes] | None = None
        self.idle_since = 0.0
        self.usable = True  # for another request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As the loop says."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def send(self, request: bytes) -> Answer:
        """Send one request and wait for its answer; ConnectionError when none comes."""
        if self._transport is None or not self.usable:
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    async def closed(self) -> None:
        """Until nothing of it is left."""
        await self._lost

    def close(self) -> None:
        """At once; an answer that is awaited does not come any more."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """A piece of an answer."""
        if self._answer is None or self._answer.done():
            self.close()  # nothing was asked: the next answer could be that of another request
            return
        self._buffer += data
        try:
            self._read()
        except ValueError as error:
            self._fail(ProtocolError(f"the answer is not HTTP/1.1: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side, or we, closed it."""
        self.usable = False
        self._lost.set_result(None)
        if self._answer is None or self._answer.done():
            return
        if exc is None and self._head is not None and self._until_close(self._head[1]):
            self._finish(bytes(self._buffer))
            return
        self._fail(ConnectionResetError(f"the server closed the connection ({exc or 'early'})"))

    def _read(self) -> None:
        if self._head is None and not self._read_head():
            return
        assert self._head is not None
        status, headers = self._head
        if status in (204, 304):
            self._finish(b"")
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._read_chunks()
        elif "content-length" in headers:
            length = _whole(headers["content-length"], 10)
            if len(self._buffer) >= length:
                body = bytes(self._buffer[:length])
                del self._buffer[:length]
                self._finish(body)

    def _read_head(self) -> bool:
        """Whether the head of the final answer is there; 1xx is passed over."""
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _HEAD_MOST:
                    raise ValueError(f"a head of more than {_HEAD_MOST} bytes")
                return False
            lines = self._buffer[:end].decode("latin-1").split("\r\n")
            del self._buffer[: end + 4]
            version, _, rest = lines[0].partition(" ")
            if not version.startswith("HTTP/1."):
                raise ValueError("it does not begin with HTTP/1")
            status = _whole(rest[:3], 10)
            headers = {}
            for line in lines[1:]:
                name, colon, value = line.partition(":")
                if not colon:
                    raise ValueError("a header without a colon")
                headers[name.lower()] = value.strip()
            if status >= 200:
                self._head = (status, headers)
                if version == "HTTP/1.0" or headers.get("connection", "").lower() == "close":
                    self.usable = False
                return True

    def _read_chunks(self) -> None:
        if self._chunks is None:
            self._chunks = []
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return
            size = _whole(self._buffer[:end].partition(b";")[0].strip().decode("latin-1"), 16)
            if size == 0:
                self._read_trailer(end)
                return
            start, stop = end + 2, end + 2 + size
            if len(self._buffer) < stop + 2:
                return
            if self._buffer[stop : stop + 2] != b"\r\n":
                raise ValueError("a chunk does not end where it says")
            self._chunks.append(bytes(self._buffer[start:stop]))
            del self._buffer[: stop + 2]

    def _read_trailer(self, start: int) -> None:
        """Headers after the last chunk, which nobody needs, and an empty line."""
        end = self._buffer.find(b"\r\n\r\n", start)
        if end < 0:
            return
        del self._buffer[: end + 4]
        self._finish(b"".join(self._chunks or []))

    def _until_close(self, headers: dict[str, str]) -> bool:
        return "content-length" not in headers and "transfer-encoding" not in headers

    def _finish(self, body: bytes) -> None:
        assert self._head is not None
        assert self._answer is not None
        if self._buffer:
            self.usable = False  # more than was asked for
        (status, headers), answer = self._head, self._answer
        self._head, self._chunks, self._answer = None, None, None
        self.idle_since = time.monotonic()
        answer.set_result(Answer(status, headers, body))

    def _fail(self, error: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()


def _whole(text: str, base: int) -> int:
    """Digits only: int() would take signs, spaces and underscores."""
    digits = "0123456789abcdef"[:base]
    if not text or any(letter not in digits for letter in text.lower()):
        raise ValueError(f"{text[:20]!r} is not a number")
    return int(text, base)


class Client:
    """Requests to one server, each on a connection of its own from a pool without limit."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        """`url` is http://host:port or https://host:port; `context` is for the latter."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the server's address is {url!r}; http:// or https:// is allowed")
        secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port or (443 if secure else 80)
        self._context = (context or ssl.create_default_context()) if secure else None
        self._prefix = parts.path.rstrip("/")
        host = parts.netloc.rpartition("@")[2]
        # Silence about encodings allows any: a proxy in between might ask for gzip.
        self._fixed = f"HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n"
        self._idle: list[Connection] = []

    async def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes,
        seconds: float,
        allowed: Callable[[], object] | None = None,
    ) -> Answer:
        """One request; TimeoutError after `seconds`, OSError when the server is away.

        `target` is path and query, already encoded. `allowed` is asked once the connection is
        open, right before the first byte; what it raises is raised, and nothing is sent.
        """
        request = self._encode(method, target, headers, body)
        async with asyncio.timeout(seconds):
            connection = self._take() or await self._connect()
            try:
                if allowed:
                    allowed()
                answer = await connection.send(request)
            except BaseException:
                connection.close()
                raise
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        while self._idle and not self._fresh(self._idle[0]):
            self._idle.pop(0).close()
        return answer

    async def close(self) -> None:
        """Close what is idle; requests under way must have ended."""
        for connection in self._idle:
            connection.close()
        await asyncio.gather(*(connection.closed() for connection in self._idle))
        self._idle.clear()

    def _encode(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        target = self._prefix + target
        if not _TARGET.fullmatch(target):
            raise ValueError(f"{target!r} is no target of a request")
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
            raise ValueError("a header holds a line break")
        if body or method != "GET":
            lines += f"Content-Length: {len(body)}\r\n"
        return f"{method} {target} {self._fixed}{lines}\r\n".encode("latin-1") + body

    def _take(self) -> Connection | None:
        """The one that was used last."""
        while self._idle:
            connection = self._idle.pop()
            if self._fresh(connection):
                return connection
            connection.close()
        return None

    def _fresh(self, connection: Connection) -> bool:
        """Old ones may be closed by the server just when they are used."""
        return connection.usable and time.monotonic() - connection.idle_since < _IDLE

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT):
            _, connection = await loop.create_connection(
                Connection,
                self._host,
                self._port,
                ssl=self._context,
                server_hostname=self._host if self._context else None,
            )
        return connection
