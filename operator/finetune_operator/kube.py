"""Requests to the API server: dict in, dict out.

Configuration and credentials come from the `kubernetes` package (kubeconfig or the pod's service
account, token rotation included); the requests are ours, because its typed models refuse or drop
fields newer than the client.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes import client, config

Object = dict[str, Any]
_PAGE = 500
_MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused; `code` is the HTTP status, `reason` its CamelCase word."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message


TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a request raises when the API server is away; the caller tries again."""


def load_configuration() -> Any:
    """The pod's service account inside a cluster, else KUBECONFIG or ~/.kube/config."""
    if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
        config.load_incluster_config()
    else:
        config.load_kube_config()
    return client.Configuration.get_default_copy()


class Kube:
    """A client of one API server."""

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=64),
            timeout=aiohttp.ClientTimeout(total=10, sock_connect=5),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def get(self, path: str, **query: str) -> Object:
        """GET; ApiError 404 when it is not there."""
        return await self._request("GET", path, query)

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        """All items, page by page, and the version of the list."""
        items: list[Object] = []
        query = {"limit": str(_PAGE), **query}
        while True:
            page = await self._request("GET", path, query)
            items += page["items"]
            token = page["metadata"].get("continue")
            if not token:
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = token

    async def create(self, path: str, body: Object, **query: str) -> Object:
        """POST."""
        return await self._request("POST", path, query, body)

    async def patch(self, path: str, body: Object) -> Object:
        """Merge patch."""
        return await self._request("PATCH", path, {}, body, _MERGE)

    async def delete(self, path: str, body: Object) -> Object:
        """DELETE."""
        return await self._request("DELETE", path, {}, body)

    async def watch(self, path: str, version: str, **query: str) -> AsyncIterator[Object]:
        """Events from a version on, until the server ends the stream; ApiError 410 when too old."""
        query |= {"watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = "300"
        url = f"{self._configuration.host}{path}?{urlencode(query)}"
        # Bookmarks come about once a minute: silence for longer is a dead connection.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=90)
        async with self._session.get(url, timeout=timeout, headers=self._credentials()) as response:
            if response.status >= 400:
                raise await _error(response)
            async for line in _lines(response.content):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(
                        status.get("code", 500), status.get("reason", ""), status["message"]
                    )
                yield event

    def _credentials(self) -> dict[str, str]:
        """Asked for at every request: tokens in pods rotate."""
        settings = self._configuration.auth_settings().values()
        return {s["key"]: s["value"] for s in settings if s["in"] == "header" and s["value"]}

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        url = f"{self._configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type} | self._credentials()
        async with self._session.request(method, url, data=data, headers=headers) as response:
            if response.status >= 400:
                raise await _error(response)
            answer: Object = await response.json(content_type=None)
            return answer


async def _error(response: aiohttp.ClientResponse) -> ApiError:
    text = await response.text()
    try:
        status = json.loads(text)
        return ApiError(response.status, status.get("reason", ""), status.get("message", text))
    except ValueError:
        return ApiError(response.status, "", text[:512])


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length (the reader's own limit is 64 KiB)."""
    buffer = b""
    async for chunk in stream.iter_any():
        *whole, buffer = (buffer + chunk).split(b"\n")
        for line in whole:
            yield line
