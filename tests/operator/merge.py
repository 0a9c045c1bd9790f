"""Merge patches as the API server applies them."""

from typing import Any


def merged(target: Any, patch: Any) -> Any:
    """Return the target with a patch of RFC 7386 applied."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result
