"""A proxy in front of the real API server that injects faults and records requests."""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from finetune_local.cluster import Cluster

READS = ("GET",)
WRITES = ("POST", "PUT", "PATCH", "DELETE")


@dataclass
class Fault:
    """What happens to the requests that it matches, the first `times` of them."""

    methods: tuple[str, ...] = READS + WRITES
    path: str = ""  # part of the path
    watch: bool | None = None
    times: int = 1_000_000
    code: int = 0  # the status to respond with instead
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None  # body of that response; None: a Status
    delay: float = 0.0  # s before the request is forwarded
    cut: bool = False  # close the connection before the request is forwarded
    lose: bool = False  # drop the response after the request was carried out
    mute: bool = False  # forward nothing of a stream
    met: int = 0

    def matches(self, request: web.Request) -> bool:
        if self.met >= self.times or request.method not in self.methods:
            return False
        watch = "watch" in request.query
        return self.path in request.path and self.watch in (None, watch)

    def response(self) -> web.Response:
        status = {"kind": "Status", "code": self.code, "reason": "Fault", "message": "a fault"}
        text, kind = json.dumps(status), "application/json"
        if self.body is not None:
            text, kind = self.body, "text/html"
        return web.Response(status=self.code, headers=self.headers, text=text, content_type=kind)


@dataclass(frozen=True)
class Seen:
    """A request that reached the proxy."""

    at: float  # monotonic time of its arrival
    method: str
    path: str
    watch: bool

    @property
    def writes(self) -> bool:
        return self.method in WRITES


class Proxy:
    """Speaks HTTP to the operator and TLS to the API server, in a thread with a loop of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self._server = cluster.settings.server
        self._ca = cluster.directory / "pki" / "ca.crt"
        self._faults: list[Fault] = []
        self._streams: dict[int, web.Request] = {}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self.seen: list[Seen] = []
        self.port = 0

    def __enter__(self) -> "Proxy":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def kubeconfig(self, config: Path) -> Path:
        """Return a kubeconfig of the same user through this proxy."""
        content = json.loads(config.read_text())
        content["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{self.port}"
        through = config.with_name(f"{config.stem}-{self.port}.conf")
        through.touch(mode=0o600)
        through.write_text(json.dumps(content))
        return through

    @contextmanager
    def fault(self, **what: object) -> Iterator[Fault]:
        """Inject a fault while the block runs."""
        fault = Fault(**what)  # type: ignore[arg-type]
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def cut_streams(self) -> int:
        """Cut every open watch and return how many there were."""
        streams = list(self._streams.values())
        self._loop.call_soon_threadsafe(lambda: [_cut(request) for request in streams])
        return len(streams)

    def writes(self, since: float, but: str = "/leases") -> list[Seen]:
        """Return the requests since then that would change an object, except to the Lease."""
        return [s for s in self.seen if s.writes and s.at > since and but not in s.path]

    async def _run(self) -> None:
        context = ssl.create_default_context(cafile=self._ca)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        app = web.Application(client_max_size=8 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as self._session:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = site.port
            self._ready.set()
            await self._stop.wait()
            for connection in list(runner.server.connections if runner.server else []):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.05)  # Transports close in the next iterations of the loop.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        watch = "watch" in request.query
        self.seen.append(Seen(time.monotonic(), request.method, request.path, watch))
        fault = next((fault for fault in self._faults if fault.matches(request)), Fault())
        fault.met += 1
        if fault.delay:
            await asyncio.sleep(fault.delay)
        if fault.cut:
            return _cut(request)
        response = fault.response() if fault.code else await self._forward(request, fault)
        return _cut(request) if fault.lose else response

    async def _forward(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        url = f"{self._server}{request.path_qs}"
        headers = {k: v for k, v in request.headers.items() if k not in ("Host", "Content-Length")}
        body = await request.read()
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, allow_redirects=False
        ) as answer:
            if "watch" in request.query and answer.status == 200:
                return await self._stream(request, answer, fault)
            kept = {
                k: v
                for k, v in answer.headers.items()
                if k in ("Content-Type", "Content-Encoding", "Retry-After")
            }
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, fault: Fault
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self._streams[id(request)] = request
        try:
            async for chunk in answer.content.iter_any():
                if not fault.mute:
                    await response.write(chunk)
        except ConnectionError:
            pass  # It was cut, or the operator has ended.
        finally:
            del self._streams[id(request)]
        return response


def _cut(request: web.Request) -> web.Response:
    """Close the connection without a response."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
