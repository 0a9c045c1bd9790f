"""Writes: the guard is asked before the first byte, and no write is ever sent twice."""

import asyncio
import socket

import pytest

from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, InterruptedWriteError
from tests.client.servers import EMPTY, Request, serve

WRITES = {
    "POST": lambda api: api.create("/api/v1/pods", {"a": 1}),
    "PUT": lambda api: api.request("PUT", "/api/v1/pods/a", {}, {"a": 1}),
    "PATCH": lambda api: api.patch("/api/v1/pods/a", {"a": 1}),
    "DELETE": lambda api: api.delete("/api/v1/pods/a", {"a": 1}),
    "DELETE without a body": lambda api: api.delete("/api/v1/pods/a"),
}


class RefusedError(Exception):
    """What the guard raises."""


class Guard:
    """Allows a number of calls, then refuses."""

    def __init__(self, allowed: int) -> None:
        self.allowed, self.calls = allowed, 0

    def __call__(self) -> float:
        self.calls += 1
        if self.calls > self.allowed:
            raise RefusedError
        return 5.0


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_the_guard_refuses_before_a_connection_is_opened(write):
    async with serve() as server, Api(server.configuration(), guard=Guard(0)) as api:
        with pytest.raises(RefusedError):
            await write(api)
        await asyncio.sleep(0.05)
        assert server.connections == 0


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_the_guard_refuses_on_a_new_connection_before_the_first_byte(write):
    received = b""

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        received += await reader.read()
        writer.close()
        closed.set()

    closed = asyncio.Event()
    listening = await asyncio.start_server(record, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with serve() as server:
        server.port = port
        async with Api(server.configuration(), guard=Guard(1)) as api:
            with pytest.raises(RefusedError):
                await write(api)
            # The refused connection is closed at once, not when the client is.
            await asyncio.wait_for(closed.wait(), 5)
    listening.close()
    assert received == b""


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_the_guard_refuses_on_a_reused_connection_before_the_first_byte(write):
    async with serve() as server, Api(server.configuration(), guard=Guard(1)) as api:
        await api.get("/api")
        with pytest.raises(RefusedError):
            await write(api)
        await asyncio.sleep(0.05)
        assert server.connections == 1
        assert [request.line for request in server.requests] == ["GET /api HTTP/1.1"]
        # The connection that was refused is not used for another request.
        await api.get("/api")
        assert server.connections == 2


async def test_reads_do_not_ask_the_guard():
    guard = Guard(0)
    async with serve() as server, Api(server.configuration(), guard=guard) as api:
        await api.get("/api")
        assert guard.calls == 0


def drop(*methods: str):
    """Close the connection after a request of these methods was received, without a response."""

    def respond(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.line.startswith(methods):
            writer.transport.abort()
        else:
            writer.write(EMPTY)

    return respond


@pytest.mark.parametrize("reused", [False, True], ids=["new connection", "reused connection"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_a_write_whose_connection_is_lost_is_received_once(write, reused):
    respond = drop("POST", "PUT", "PATCH", "DELETE")
    async with serve(respond) as server, Api(server.configuration()) as api:
        if reused:
            await api.get("/api")
        with pytest.raises(InterruptedWriteError) as lost:
            await write(api)
        assert isinstance(lost.value, TRANSIENT)
        await asyncio.sleep(0.1)
        assert server.connections == 1
        assert len([r for r in server.requests if not r.line.startswith("GET")]) == 1


async def test_a_read_whose_connection_is_lost_is_repeated():
    dropped = 0

    def respond(_: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal dropped
        dropped += 1
        if dropped <= 2:
            writer.transport.abort()
        else:
            writer.write(EMPTY)

    async with serve(respond) as server, Api(server.configuration()) as api:
        assert await api.get("/api") == {}
        assert len(server.requests) == 3


async def test_a_write_to_a_server_that_is_away_is_not_sent_and_says_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with serve() as server:
        server.port = port
        async with Api(server.configuration()) as api:
            with pytest.raises(TRANSIENT) as away:
                await api.create("/api/v1/pods", {})
    assert not isinstance(away.value, InterruptedWriteError)


async def test_the_server_is_given_the_time_that_the_guard_allows():
    async with serve() as server, Api(server.configuration(), guard=lambda: 2.5) as api:
        await api.create("/api/v1/pods", {}, dryRun="All")
        assert server.requests[0].line == "POST /api/v1/pods?dryRun=All&timeout=2500ms HTTP/1.1"


@pytest.mark.slow
async def test_a_write_ends_when_its_time_is_over():
    """aiohttp would round a deadline of more than 5 s up to the next second."""
    loop = asyncio.get_running_loop()

    def nothing(_: Request, __: asyncio.StreamWriter) -> None:
        pass

    async with serve(nothing) as server, Api(server.configuration(), guard=lambda: 5.3) as api:
        begin = loop.time()
        with pytest.raises(TimeoutError):
            await api.create("/api/v1/pods", {})
        assert 5.2 < loop.time() - begin < 5.6
