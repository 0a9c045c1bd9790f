"""Reads the Secrets and ConfigMaps that the node's pods refer to."""

import base64

from finetune_client.api import Api
from finetune_client.errors import ApiError


async def read_data(api: Api, namespace: str, kind: str, name: str) -> dict[str, bytes] | None:
    """Return the decoded data of a `secret` or `configmap`, or None if it does not exist."""
    try:
        found = await api.get(f"/api/v1/namespaces/{namespace}/{kind}s/{name}")
    except ApiError as error:
        # A node may read only what its pods refer to. The API server responds with 403 if the
        # object does not exist, and also until it has noticed that a pod refers to it.
        if error.code in (403, 404):
            return None
        raise
    if kind == "secret":
        return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
    text = {key: value.encode() for key, value in found.get("data", {}).items()}
    binary = {key: base64.b64decode(v) for key, v in found.get("binaryData", {}).items()}
    return text | binary
