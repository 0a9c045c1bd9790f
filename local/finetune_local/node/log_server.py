"""The endpoints of a node that the API server uses for `kubectl logs`, `exec` and `cp`."""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from finetune_local.layout import KUBELET_CLIENT
from finetune_local.node import container_record, exec_server
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
        app.router.add_get("/exec/{namespace}/{pod}/{container}", self._exec)
        app.router.add_get("/healthz", _healthz)
        # Connections that follow a log last as long as the pod, so do not wait for them at the end.
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, address, 0, ssl_context=self._context)
        await site.start()
        port: int = runner.addresses[0][1]
        return port

    def _find(self, request: web.Request) -> Pod | None:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        return next((p for p in reversed(self._pods()) if _is(p, namespace, name)), None)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        pod, name = self._find(request), request.match_info["pod"]
        if pod is None:
            return _refuse(404, f"pod {name} is not on this node")
        container = request.match_info["container"]
        if container not in {**pod.state.main, **pod.state.init}:
            return _refuse(404, f"pod {name} has no container {container}")
        previous = request.query.get("previous") == "true"
        file = container_record.previous_log_file if previous else container_record.log_file
        path = file(pod.folder / "containers" / container)
        if not path.exists():
            lacking = "has not been restarted" if previous else "has not started"
            return _refuse(400, f"container {container} in pod {name} {lacking}")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        try:
            await _stream(response, path, pod.end_of(container), request)
        except (ConnectionError, FileNotFoundError):
            return response  # the client disconnected, or the pod was removed
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        if _user(request) != KUBELET_CLIENT:
            return _refuse(403, "only the API server may run commands")
        pod = self._find(request)
        container = pod.containers.get(request.match_info["container"]) if pod else None
        if container is None:
            return _refuse(404, f"container {request.match_info['container']} does not run here")
        return await exec_server.serve(request, container)


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


def _user(request: web.Request) -> str:
    """Return the user of the client's certificate."""
    certificate = request.get_extra_info("peercert") or {}
    names = dict(entry for part in certificate.get("subject", ()) for entry in part)
    return str(names.get("commonName", ""))


async def _healthz(_: web.Request) -> web.Response:
    return web.Response(text="ok")
