"""A small fast client of the API server, as administrator: the answers are not parsed."""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import aiohttp

from finetune_api.base import Object

MERGE = "application/merge-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json"


class RefusedError(Exception):
    """The API server said no; `code` is the HTTP status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text[:300]}")
        self.code = code


class Api:
    """Requests with a client certificate."""

    def __init__(self, kubeconfig: Path, *, connections: int = 64) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        self._server = cluster["server"]
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=connections),
            timeout=aiohttp.ClientTimeout(total=600, sock_connect=10),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(
        self, method: str, path: str, body: Object | None = None, kind: str = "application/json"
    ) -> bytes:
        """One request; the answer holds metadata only. RefusedError from 400 on."""
        # A deleted collection is answered with itself, which has no such form.
        accept = "application/json" if method == "DELETE" else _METADATA
        headers = {"Content-Type": kind, "Accept": accept}
        data = None if body is None else json.dumps(body)
        url = self._server + path
        async with self._session.request(method, url, data=data, headers=headers) as response:
            answer = await response.read()
            if response.status >= 400:
                raise RefusedError(response.status, answer.decode(errors="replace"))
            return answer

    async def post(self, url: str) -> None:
        """To another server, here the scripted kubelet."""
        async with self._session.post(url) as response:
            response.raise_for_status()

    async def get(self, path: str) -> Object:
        """A whole object or list."""
        async with self._session.get(self._server + path) as response:
            if response.status >= 400:
                raise RefusedError(response.status, await response.text())
            answer: Object = await response.json(content_type=None)
            return answer

    async def watch(
        self, path: str, query: str = "", *, whole: bool = False
    ) -> AsyncIterator[Object]:
        """Everything there is as ADDED, then what happens, for ever; after a break again all."""
        while True:
            try:
                async for event in self._watch(path, query, whole=whole):
                    yield event
            except (RefusedError, aiohttp.ClientError) as error:
                print(f"watch of {path}: {error}", file=sys.stderr)
                await asyncio.sleep(1)  # "storage is (re)initializing", for a new kind

    async def _watch(self, path: str, query: str, *, whole: bool) -> AsyncIterator[Object]:
        url = f"{self._server}{path}?watch=1&timeoutSeconds=3600&{query}"
        headers = {} if whole else {"Accept": _METADATA}
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.get(url, headers=headers, timeout=timeout) as response:
            if response.status >= 400:
                raise RefusedError(response.status, await response.text())
            buffer = b""
            async for chunk in response.content.iter_any():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)
