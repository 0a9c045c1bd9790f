"""Secrets and ConfigMaps that the node's pods name."""

import base64

from finetune_local.node.api import Api, ApiError


async def look_up(api: Api, namespace: str, kind: str, name: str) -> dict[str, bytes] | None:
    """Data of a `secret` or `configmap`; None when it does not exist."""
    try:
        found = await api.get(f"/api/v1/namespaces/{namespace}/{kind}s/{name}")
    except ApiError as error:
        # A node may read only what its pods name; before the API server has noticed that a pod
        # names it, and when it does not exist, the answer is 403.
        if error.code in (403, 404):
            return None
        raise
    if kind == "secret":
        return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
    text = {key: value.encode() for key, value in found.get("data", {}).items()}
    binary = {key: base64.b64decode(v) for key, v in found.get("binaryData", {}).items()}
    return text | binary
