"""Pods that respond to the request for a report with something else."""

import asyncio
import contextlib
import functools
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api.base import Object
from finetune_api.names import REPORT_PORT

Writer = asyncio.StreamWriter
MIB = 2**20


def honest(uid: str, attempt: int = 1, index: int = 0, **changes: Any) -> Object:
    """Return the report of a trainer."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "jobUid": uid,
        "attempt": attempt,
        "workerIndex": index,
        "sequence": 1,
        "stage": "Training",
        "stageSince": datetime.now(UTC).isoformat(),
        "activity": 1,
        "activityAgeSeconds": 0.5,
        **changes,
    }


def ok(body: bytes, *headers: str) -> bytes:
    """Return a response with this body."""
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def of(report: Object) -> bytes:
    return ok(json.dumps(report).encode(), "Content-Type: application/json")


@dataclass
class Worker:
    """A server at the address of a pod. `answer` is the response or a function that writes it."""

    address: str
    answer: bytes | Callable[[Writer], Awaitable[None]]
    heads: list[bytes] = field(default_factory=list)  # of the requests

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Worker"]:
        self._tasks = set[asyncio.Task[None]]()
        server = await asyncio.start_server(self._accept, self.address, REPORT_PORT)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Not in the task itself, because a task that is cancelled before it starts would leave the
        # socket open.
        task.add_done_callback(lambda _: writer.close())

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            if isinstance(self.answer, bytes):
                writer.write(self.answer)
                await writer.drain()
            else:
                await self.answer(writer)


def endless(head: bytes, piece: bytes, pause: float = 0.0) -> Callable[[Writer], Awaitable[None]]:
    """Return a function that writes the head and then the same piece without end."""

    async def answer(writer: Writer) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


@functools.cache
def bomb(size: int) -> bytes:
    """Return a number of spaces in gzip, which takes a thousandth of that number in bytes."""
    return gzip.compress(b" " * size)


_OPEN = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _OPEN + b"Transfer-Encoding: chunked\r\n"
_ZIPPED = ("Content-Type: application/json", "Content-Encoding: gzip")


def wrong(uid: str, trap: str = "127.255.97.250") -> dict[str, Any]:
    """Return responses that are not a report of worker 0 in attempt 1 of the job."""
    mine = json.dumps(honest(uid)).encode()
    deep = b"[" * 50_000 + b"]" * 50_000
    return {
        "redirect": _OPEN.replace(b"200 OK", b"302 Found")
        + f"Location: http://{trap}:{REPORT_PORT}/v1/report\r\nContent-Length: 0\r\n\r\n".encode(),
        "permanent redirect": _OPEN.replace(b"200 OK", b"308 Moved")
        + f"Location: //{trap}:{REPORT_PORT}/\r\nContent-Length: 0\r\n\r\n".encode(),
        "asks for a password": _OPEN.replace(b"200 OK", b"401 No")
        + b'WWW-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n',
        "body without end": endless(_OPEN + b"\r\n", b" " * 65536),
        "chunks without end": endless(_CHUNKED + b"\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
        "chunk of a large size": endless(_CHUNKED + b"\r\nFFFFFFFFF\r\n", b" " * 65536),
        "chunk extension without end": endless(_CHUNKED + b"\r\n1;", b"x" * 65536),
        "trailers without end": endless(_CHUNKED + b"\r\n0\r\n", b"a: b\r\n" * 8192),
        "large length": endless(_OPEN + b"Content-Length: 99999999999\r\n\r\n", b" " * 65536),
        "header without end": endless(_OPEN + b"X: ", b"x" * 65536),
        "headers without end": endless(_OPEN, b"X: y\r\n" * 8192),
        "informational without end": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 512),
        "sends slowly": endless(_OPEN + b"Content-Length: 5000\r\n\r\n", b" ", 0.05),
        "sends its header slowly": endless(b"", b"H", 0.05),
        "sends nothing": endless(b"", b"", 0.05),
        "gzip bomb": ok(bomb(64 * MIB), *_ZIPPED),
        "report in gzip": ok(gzip.compress(mine), *_ZIPPED),
        "too large": ok(mine[:-1] + b" " * 256 * 1024 + b"}"),
        "large text": of(honest(uid, jobUid="x" * 200_000)),
        "not JSON": ok(b"<html>", "Content-Type: text/html"),
        "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
        "empty": ok(b""),
        "cut short": _OPEN + b"Content-Length: 100\r\n\r\n{",
        "closes the connection": b"",
        "nested without end": ok(deep),
        "nested in a field": ok(mine[:-1] + b',"x":' + deep + b"}"),
        "not UTF-8": ok(mine.replace(b"Training", b"Train\xff\xfeing")),
        "half of a surrogate pair": ok(mine.replace(b"Training", b"\\ud800")),
        "another job": of(honest("another-job")),
        "another attempt": of(honest(uid, attempt=2)),
        "another worker": of(honest(uid, index=1)),
        "a list": ok(b"[]"),
        "a cookie": ok(b"{}", "Set-Cookie: session=s3cr3t; Path=/"),
    }


HUGE = 10**400
NUMBERS: tuple[Any, ...] = (float("nan"), float("inf"), -float("inf"), -1, -1e300, 1e308, HUGE)
TEXTS = (
    "x" * 5000,
    "\x1b[2J\x1b]0;owned\x07",
    "line\n2026-01-01 00:00:00,000 ERROR finetune: forged",
    "\u202egnp.exe",
    "\x00\r\b",
)
TIMES = (
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    "0001-01-01T00:00:00",
    "9999-12-31T23:59:59Z",
    -(10**18),
    1e300,
    "now",
)
