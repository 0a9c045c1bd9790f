"""Merge patches as the API server applies them."""

from typing import Any


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes a key, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
