"""The kubelet's log endpoint: what `kubectl logs` reads."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from finetune_local.node.pod import Pod

_CHUNK = 65536
_UNSUPPORTED = ("timestamps", "sinceSeconds", "sinceTime", "previous")


class LogServer:
    """HTTPS on the node's address; only the cluster's own authority is believed."""

    def __init__(self, pods: Callable[[], list[Pod]], cert: Path, key: Path, ca: Path) -> None:
        self._pods = pods
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca))
        self._context.load_cert_chain(cert, key)
        self._context.verify_mode = ssl.CERT_REQUIRED

    async def start(self, address: str) -> int:
        """Listen on a free port and return it."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        app.router.add_get("/healthz", _healthz)
        # Log followers hang on for as long as a pod lives: nothing to wait for at the end.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, address, 0, ssl_context=self._context)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        refused = [
            option for option in _UNSUPPORTED if request.query.get(option, "false") != "false"
        ]
        if refused:
            return web.Response(
                status=400, text=f"{refused[0]} is not offered by this process node"
            )
        pod = next((p for p in self._pods() if _is(p, namespace, name)), None)
        if pod is None:
            return web.Response(status=404, text=f"pod {namespace}/{name} is not on this node")
        wanted = request.match_info["container"]
        if wanted not in {**pod.state.main, **pod.state.init}:
            return web.Response(status=404, text=f"pod {name} has no container {wanted}")
        if wanted not in pod.containers:
            return web.Response(status=400, text=f"container {wanted} has not started")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        try:
            await _stream(response, pod, wanted, request)
        except (ConnectionError, FileNotFoundError):
            return response  # the reader left, or the pod did
        return response


async def _stream(
    response: web.StreamResponse, pod: Pod, container: str, request: web.Request
) -> None:
    follow = request.query.get("follow") == "true"
    left = int(request.query.get("limitBytes", 2**62))
    path = pod.containers[container].log
    with path.open("rb") as file:
        if "tailLines" in request.query:
            file.seek(tail_offset(path, int(request.query["tailLines"])))
        while left > 0:
            over = _ended(pod, container)  # before the read: what came before the end is read
            chunk = file.read(min(_CHUNK, left))
            if chunk:
                left -= len(chunk)
                await response.write(chunk)
            elif over or not follow:
                return
            else:
                await asyncio.sleep(0.1)


def tail_offset(path: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    if lines <= 0:
        return path.stat().st_size
    data = path.read_bytes()
    position = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(lines):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return 0
    return position + 1


def _is(pod: Pod, namespace: str, name: str) -> bool:
    metadata = pod.object["metadata"]
    return bool(metadata["namespace"] == namespace and metadata["name"] == name)


def _ended(pod: Pod, container: str) -> bool:
    state = pod.state.main.get(container) or pod.state.init[container]
    return state.ended is not None


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok")
