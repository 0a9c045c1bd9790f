"""Runs commands in containers for `kubectl exec` and `kubectl cp`.

The protocol is that of a kubelet, v5.channel.k8s.io: the first byte of a WebSocket message is its
channel. The API server forwards the connection of the client, because the node declares the feature
ExtendWebSocketsToKubelet.
"""

import asyncio
import json
import os
import signal
from asyncio.subprocess import Process
from contextlib import suppress

from aiohttp import WSMsgType, web

from finetune_api.base import Object
from finetune_local.node.container import Container

FEATURE = "ExtendWebSocketsToKubelet"
_PROTOCOL = "v5.channel.k8s.io"
_STDIN, _STDOUT, _STDERR, _STATUS, _CLOSE = 0, 1, 2, 3, 255
_CHUNK = 32768


async def serve(request: web.Request, container: Container) -> web.StreamResponse:
    """Run the command of the request and copy its streams until it or the client ends."""
    query = request.query
    socket = web.WebSocketResponse(protocols=(_PROTOCOL,), compress=False, max_msg_size=0)
    await socket.prepare(request)
    try:
        if query.get("tty") == "1":
            raise LookupError("this process node offers no terminal: leave out --tty")
        process = await container.execute(query.getall("command"), stdin=query.get("input") == "1")
    except LookupError as error:
        # A client reads this; after an HTTP error it would try an older protocol.
        refusal = {"metadata": {}, "status": "Failure", "message": str(error)}
        await _send(socket, _STATUS, json.dumps(refusal).encode())
        await socket.close()
        return socket
    feeding = asyncio.create_task(_feed(socket, process))
    try:
        with suppress(ConnectionError):
            await asyncio.gather(
                _copy(process.stdout, socket, _STDOUT), _copy(process.stderr, socket, _STDERR)
            )
            await _send(socket, _STATUS, json.dumps(_status(await process.wait())).encode())
            await socket.close()
    finally:
        feeding.cancel()
        _kill(process)
        await process.wait()
    return socket


async def _feed(socket: web.WebSocketResponse, process: Process) -> None:
    """Write what the client sends to stdin; end the command when the client disconnects."""
    async for message in socket:
        if message.type is not WSMsgType.BINARY or process.stdin is None:
            continue
        channel, data = message.data[0], message.data[1:]
        with suppress(ConnectionError):  # the command has closed its stdin
            if channel == _STDIN:
                process.stdin.write(data)
                await process.stdin.drain()
            elif channel == _CLOSE and data == bytes([_STDIN]):
                process.stdin.close()
    _kill(process)


async def _copy(
    stream: asyncio.StreamReader | None, socket: web.WebSocketResponse, channel: int
) -> None:
    assert stream is not None
    while data := await stream.read(_CHUNK):
        await _send(socket, channel, data)


async def _send(socket: web.WebSocketResponse, channel: int, data: bytes) -> None:
    await socket.send_bytes(bytes([channel]) + data)


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _status(code: int) -> Object:
    """Return the `Status` that a client reads the exit code from."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
