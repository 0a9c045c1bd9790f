"""Requests to the API server: dict in, dict out."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import aiohttp

from finetune_api.base import Object

_MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused; `code` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Api:
    """A client of one kubeconfig with a client certificate."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        context.load_cert_chain(user["client-certificate"], user["client-key"])
        self._server = cluster["server"]
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=aiohttp.ClientTimeout(total=15, sock_connect=5),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, path: str, **query: str) -> Object:
        """GET; ApiError when it is not there."""
        return await self._request("GET", path, query)

    async def create(self, path: str, body: Object) -> Object:
        """POST."""
        return await self._request("POST", path, {}, body)

    async def patch(self, path: str, body: Object) -> Object:
        """Merge patch."""
        return await self._request("PATCH", path, {}, body, _MERGE)

    async def delete(self, path: str, body: Object | None = None) -> Object:
        """DELETE."""
        return await self._request("DELETE", path, {}, body)

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Object]:
        """Events from a version on, until the server ends the stream; ApiError on 410."""
        query |= {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = "300"
        url = f"{self._server}{path}?{urlencode(query)}"
        # Bookmarks come about once a minute: silence for longer is a dead connection.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=90)
        async with self._session.get(url, timeout=timeout) as response:
            if response.status >= 400:
                raise ApiError(response.status, await response.text())
            async for line in _lines(response.content):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 500), event["object"]["message"])
                yield event

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        url = f"{self._server}{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self._session.request(method, url, data=data, headers=headers) as response:
            answer: Object = await response.json(content_type=None)
            if response.status >= 400:
                raise ApiError(response.status, answer.get("message", str(answer)))
            return answer


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length (the reader's own limit is 64 KiB)."""
    buffer = b""
    async for chunk in stream.iter_any():
        *whole, buffer = (buffer + chunk).split(b"\n")
        for line in whole:
            yield line


TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a request raises when the API server is away; the caller tries again."""
