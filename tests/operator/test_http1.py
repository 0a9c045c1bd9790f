"""The small HTTP client: answers in any pieces, connections that are kept, servers that go away."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.http1 import Answer, Client, Connection, ProtocolError

OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS = {
    "length": (OK + b"Content-Length: 5\r\nX-A: b:c\r\n\r\nhello", 200, b"hello"),
    "no body": (OK + b"content-length: 0\r\n\r\n", 200, b""),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    "chunks": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n, a\r\nworld\r\n0\r\n\r\n",
        200,
        b"hello, a\r\nworld",
    ),
    "trailer": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 1\r\n\r\n",
        200,
        b"a",
    ),
    "after a 103": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na",
        200,
        b"a",
    ),
}


class Wire(asyncio.Transport):
    """The other side of a connection, without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


async def receive(pieces: list[bytes], *, then_close: bool = False) -> tuple[Answer, Connection]:
    connection = Connection()
    connection.connection_made(Wire())
    waiting = asyncio.ensure_future(connection.send(b"GET / HTTP/1.1\r\n\r\n"))
    await asyncio.sleep(0)
    for piece in pieces:
        connection.data_received(piece)
    if then_close:
        connection.connection_lost(None)
    return await asyncio.wait_for(waiting, 5), connection


@given(st.sampled_from(sorted(ANSWERS)), st.lists(st.integers(0, 140), max_size=8))
def test_an_answer_may_come_in_any_pieces(name, cuts):
    text, status, body = ANSWERS[name]
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges) if a < b]
    answer, connection = asyncio.run(receive(pieces))
    assert (answer.status, answer.body) == (status, body)
    assert connection.usable


async def test_header_names_are_lower_case_and_values_whole():
    answer, _ = await receive([ANSWERS["length"][0]])
    assert answer.headers == {"content-length": "5", "x-a": "b:c"}


async def test_without_a_length_the_body_ends_with_the_connection():
    answer, connection = await receive([OK + b"\r\nhel", b"lo"], then_close=True)
    assert answer.body == b"hello"
    assert not connection.usable


@pytest.mark.parametrize(
    "text",
    [
        OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na",
        OK + b"Content-Length: 1\r\n\r\na" + OK,
    ],
    ids=["it says so", "HTTP/1.0", "more than was asked for"],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(text):
    answer, connection = await receive([text])
    assert answer.body == b"a"
    assert not connection.usable


BROKEN = {
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a length with a sign": OK + b"Content-Length: +5\r\n\r\nhello",
    "a chunk size that is no number": OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "a chunk that is longer than it says": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n"
    ),
    "a header without a colon": OK + b"Content-Length\r\n\r\n",
    "a head without an end": OK + b"X: y\r\n" * 20_000,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
async def test_what_is_not_http_is_an_error(text):
    with pytest.raises(ProtocolError):
        await receive([text])


@pytest.mark.parametrize("text", [b"", OK, OK + b"Content-Length: 9\r\n\r\nhell"])
async def test_an_answer_that_ends_early_is_an_error(text):
    with pytest.raises(ConnectionError):
        await receive([text] if text else [], then_close=True)


# Against a server


@asynccontextmanager
async def server(
    answer: Callable[[bytes, asyncio.StreamWriter], None],
) -> AsyncIterator[tuple[Client, list[bytes]]]:
    """`answer` gets a request's head; connections are counted by an empty entry in the list."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(b"")
        try:
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                answer(heads[-1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}/base")
    try:
        yield client, heads
    finally:
        await client.close()
        listening.close()
        await asyncio.sleep(0.05)


def hello(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWERS["length"][0])


async def ask(client: Client, seconds: float = 5.0) -> Answer:
    return await client.request("GET", "/a?b=c", {"X-Who": "me"}, b"", seconds)


async def test_requests_one_after_the_other_share_a_connection():
    async with server(hello) as (client, heads):
        assert [(await ask(client)).body for _ in range(3)] == [b"hello"] * 3
        assert heads.count(b"") == 1
        assert heads[1].startswith(b"GET /base/a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")
        # A proxy that finds no word about encodings asks for gzip, and passes it on.
        assert b"\r\nAccept-Encoding: identity\r\n" in heads[1]
        assert b"\r\nX-Who: me\r\n" in heads[1]


async def test_requests_at_once_do_not_share_one():
    async with server(hello) as (client, heads):
        await asyncio.gather(*(ask(client) for _ in range(5)))
        assert heads.count(b"") == 5
        await ask(client)
        assert heads.count(b"") == 5


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced():
    def once(head: bytes, writer: asyncio.StreamWriter) -> None:
        hello(head, writer)
        writer.close()

    async with server(once) as (client, heads):
        for _ in range(2):
            assert (await ask(client)).body == b"hello"
            await asyncio.sleep(0.05)
        assert heads.count(b"") == 2


async def test_a_server_that_does_not_answer_costs_its_time_and_its_connection():
    async with server(lambda head, writer: None) as (client, heads):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await ask(client, 0.1)
        assert heads.count(b"") == 2


async def test_a_server_that_is_not_there_is_an_os_error():
    client = Client("http://127.0.0.1:1")
    with pytest.raises(OSError):
        await ask(client)


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/ä"])
async def test_a_target_that_would_break_the_request_is_refused(target):
    with pytest.raises(ValueError, match="target"):
        await Client("http://127.0.0.1:1").request("GET", target, {}, b"", 1)


async def test_a_header_that_would_break_the_request_is_refused():
    with pytest.raises(ValueError, match="line break"):
        await Client("http://127.0.0.1:1").request("GET", "/", {"A": "b\r\nC: d"}, b"", 1)
