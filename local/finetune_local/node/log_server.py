"""The node's log endpoint, which `kubectl logs` reads."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from finetune_local.node import container_record
from finetune_local.node.log_reader import Reader, tail_offset
from finetune_local.node.pod import Pod

_CHUNK = 65536


class LogServer:
    """Serves logs over HTTPS to clients with a certificate of the cluster's authority."""

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
        # Connections that follow a log last as long as the pod, so do not wait for them at the end.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, address, 0, ssl_context=self._context)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        pod = next((p for p in reversed(self._pods()) if _is(p, namespace, name)), None)
        if pod is None:
            return _refuse(404, f"pod {namespace}/{name} is not on this node")
        container = request.match_info["container"]
        if container not in {**pod.state.main, **pod.state.init}:
            return _refuse(404, f"pod {name} has no container {container}")
        if request.query.get("previous") == "true":
            return _refuse(
                400, f"container {container} has no previous run: containers never restart here"
            )
        path = container_record.log_file(pod.folder / "containers" / container)
        if not path.exists():
            return _refuse(400, f"container {container} in pod {name} has not started")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        try:
            await _stream(response, path, lambda: pod.has_ended(container), request)
        except (ConnectionError, FileNotFoundError):
            return response  # the client disconnected, or the pod was removed
        return response


async def _stream(
    response: web.StreamResponse, path: Path, has_ended: Callable[[], bool], request: web.Request
) -> None:
    query = request.query
    follow, left = query.get("follow") == "true", int(query.get("limitBytes", 2**62))
    reader = Reader(timestamps=query.get("timestamps") == "true", since=_since(query))
    with path.open("rb") as file:
        if "tailLines" in query:
            file.seek(tail_offset(path, int(query["tailLines"])))
        rest = b""
        while left > 0:
            # Checked before the read, so that everything written before the end is read.
            ended = has_ended()
            chunk = file.read(_CHUNK)
            *entries, rest = (rest + chunk).split(b"\n")
            if text := b"".join(reader.text(entry + b"\n") for entry in entries)[:left]:
                left -= len(text)
                await response.write(text)
            if not chunk:
                if ended or not follow:
                    return
                await asyncio.sleep(0.1)


def _since(query: Mapping[str, str]) -> datetime | None:
    if "sinceTime" in query:
        return datetime.fromisoformat(query["sinceTime"])
    if "sinceSeconds" in query:
        return datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"]))
    return None


def _refuse(code: int, message: str) -> web.Response:
    return web.Response(status=code, text=message)


def _is(pod: Pod, namespace: str, name: str) -> bool:
    metadata = pod.object["metadata"]
    return bool(metadata["namespace"] == namespace and metadata["name"] == name)


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok")
