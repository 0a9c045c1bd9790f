"""A small Hugging Face Hub: the endpoints that huggingface_hub and datasets really call.

Repositories are folders of commits. It answers as the real Hub does: ETag and X-Repo-Commit with
files, X-Error-Code with refusals, 401 for a repository that an anonymous client may not see.
"""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

LARGE = 60_000  # bytes; from here on a file is in LFS, with a sha256


@dataclass
class Repository:
    """One repository. `main` is its newest commit."""

    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # of a private repository: the one that may see it
    gated: bool = False

    def commit(self, folder: Path, ref: str = "main") -> str:
        """Make a folder the next commit of a branch and return its name."""
        text = f"{folder}-{len(self.commits)}"
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name], self.refs[ref] = folder, name
        return name


@dataclass
class Hub:
    """What is served, the requests that came, and the failures to simulate."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)  # answers of the next requests for contents
    cut_after: list[int] = field(default_factory=list)  # bytes after which a transfer is cut
    stall_after: int | None = None  # bytes after which every transfer stalls
    cdn: str = ""  # another server that large files are redirected to
    tokens_seen: set[str] = field(default_factory=set)
    flip: int = 0  # transfers of large files that arrive with a wrong byte

    def model(self, name: str) -> Repository:
        """Return the model of a name, created if necessary."""
        return self.repositories.setdefault(f"models/{name}", Repository())

    def dataset(self, name: str) -> Repository:
        """Return the data set of a name, created if necessary."""
        return self.repositories.setdefault(f"datasets/{name}", Repository())

    def contents(self) -> list[str]:
        """Return the requests for the contents of files."""
        return [r for r in self.requests if r.startswith("GET") and "/resolve/" in r]


def refusal(status: int, code: str, message: str) -> web.Response:
    headers = {"X-Error-Code": code, "X-Error-Message": message}
    return web.json_response({"error": message}, status=status, headers=headers)


class Handlers:
    """The handlers of the routes."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._never = asyncio.Event()

    def routes(self) -> list[web.RouteDef]:
        name = "{org}/{name}"
        return [
            web.get(f"/api/{{kind}}/{name}/revision/{{revision:.+}}", self.info),
            web.get(f"/api/{{kind}}/{name}/auth-check", self.info),
            web.get(f"/api/{{kind}}/{name}", self.info),
            web.get(f"/api/{{kind}}/{name}/tree/{{revision}}{{path:(/.*)?}}", self.tree),
            web.post(f"/api/{{kind}}/{name}/paths-info/{{revision}}", self.paths_info),
            web.get(f"/{{kind:datasets}}/{name}/resolve/{{revision}}/{{path:.+}}", self.file),
            web.get(f"/{name}/resolve/{{revision}}/{{path:.+}}", self.file),
        ]

    def find(self, request: web.Request) -> tuple[Path, str] | web.Response:
        """Return folder and commit of a request, or the refusal."""
        self.hub.requests.append(f"{request.method} {request.path}")
        info = request.match_info
        kind = info.get("kind", "models")
        repository = self.hub.repositories.get(f"{kind}/{info['org']}/{info['name']}")
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.tokens_seen.add(bearer)
        if bearer and bearer not in self.tokens():
            return refusal(401, "", "Invalid credentials in Authorization header")
        if repository is None or (repository.token and bearer != repository.token):
            status = 404 if bearer else 401
            return refusal(status, "RepoNotFound", "Repository not found")
        revision = info.get("revision", "main")
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if repository.gated and ("/resolve/" in request.path or "auth-check" in request.path):
            return refusal(403 if bearer else 401, "GatedRepo", "Access to it is restricted")
        return repository.commits[commit], commit

    def tokens(self) -> set[str]:
        return {"valid", *(r.token for r in self.hub.repositories.values() if r.token)}

    async def info(self, request: web.Request) -> web.Response:
        found = self.find(request)
        if isinstance(found, web.Response):
            return found
        info = request.match_info
        return web.json_response(
            {"id": f"{info['org']}/{info['name']}", "sha": found[1], "siblings": [], "tags": []}
        )

    async def tree(self, request: web.Request) -> web.Response:
        found = self.find(request)
        if isinstance(found, web.Response):
            return found
        folder = found[0] / request.match_info["path"].strip("/")
        if not folder.is_dir():
            return refusal(404, "EntryNotFound", "no such folder")
        deep = request.query.get("recursive", "").lower() == "true"
        paths = sorted(folder.rglob("*") if deep else folder.iterdir())
        return web.json_response([entry(path, found[0]) for path in paths])

    async def paths_info(self, request: web.Request) -> web.Response:
        found = self.find(request)
        if isinstance(found, web.Response):
            return found
        sent = await request.post() if request.content_type.startswith("application/x") else None
        wanted = sent.getall("paths") if sent is not None else (await request.json())["paths"]
        paths = [found[0] / str(name) for name in wanted]
        return web.json_response([entry(path, found[0]) for path in paths if path.exists()])

    async def file(self, request: web.Request) -> web.StreamResponse:
        found = self.find(request)
        if isinstance(found, web.Response):
            return found
        folder, commit = found
        path = folder / request.match_info["path"]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.is_file():
            answer = refusal(404, "EntryNotFound", "Entry not found")
            answer.headers.update(headers)
            return answer
        data = path.read_bytes()
        headers["ETag"] = f'"{tag(data)}"'
        if request.method == "HEAD":
            return web.Response(headers=headers | {"Content-Length": str(len(data))})
        if self.hub.cdn and len(data) > LARGE:
            return web.Response(status=302, headers={"Location": self.hub.cdn + request.path})
        if self.hub.failures:
            return web.Response(status=self.hub.failures.pop(0))
        return await self._send(request, data, headers)

    async def _send(
        self, request: web.Request, data: bytes, headers: dict[str, str]
    ) -> web.StreamResponse:
        wanted = request.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted:
            self.hub.ranges.append(wanted)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if self.hub.flip and len(data) > LARGE:
            self.hub.flip -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        answer = web.StreamResponse(status=206 if wanted else 200, headers=headers)
        answer.content_length = len(body)
        await answer.prepare(request)
        if self.hub.cut_after and len(data) > LARGE:
            await answer.write(body[: self.hub.cut_after.pop(0)])
            assert request.transport is not None
            request.transport.close()
        elif self.hub.stall_after is not None and len(data) > LARGE:
            await answer.write(body[: self.hub.stall_after])
            await self._never.wait()
        else:
            await answer.write(body)
        return answer


def tag(data: bytes) -> str:
    """Return the Hub's tag of contents: the sha256 in LFS, Git's blob id otherwise."""
    if len(data) > LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(path: Path, root: Path) -> dict[str, Any]:
    name = str(path.relative_to(root))
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": name}
    if len(data) > LARGE:
        found["lfs"] = {"oid": tag(data), "size": len(data), "pointerSize": 130}
    return found


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub in a thread, on a free port, until the block ends."""
    hub, loop, ready = Hub(), asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.add_routes(Handlers(hub).routes())
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        hub.url = f"http://127.0.0.1:{port}"
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield hub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
