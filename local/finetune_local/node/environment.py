"""Computes the environment of a container as the kubelet does."""

import os
import re
from collections.abc import Awaitable, Callable
from typing import Any

from finetune_api.base import Object

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][A-Za-z0-9_.-]*)\)")


class UnresolvedError(Exception):
    """An object or field that the pod refers to does not exist, or does not exist yet."""


Lookup = Callable[[str, str], Awaitable[dict[str, bytes] | None]]
"""(kind, name) -> the decoded data of a Secret or ConfigMap, or None if it does not exist."""


def expand(text: str, values: dict[str, str]) -> str:
    """Replace $(NAME) where NAME is set; $$ becomes a dollar sign."""

    def replacement(match: re.Match[str]) -> str:
        if match.group(0) == "$$":
            return "$"
        return values.get(match.group(1), match.group(0))

    return _REFERENCE.sub(replacement, text)


def field(pod: Object, path: str) -> str:
    """Return a downward API field; UnresolvedError if this node does not offer it."""
    found = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if found:
        return str(pod["metadata"].get(found.group(1), {}).get(found.group(2), ""))
    if path not in _FIELDS:
        raise UnresolvedError(f"fieldRef {path} is not offered here, only {sorted(_FIELDS)}")
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)


_FIELDS = {
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.podIP",
    "status.hostIP",
}


async def environment(pod: Object, container: Object, lookup: Lookup) -> dict[str, str]:
    """Return the variables of envFrom and then of env, in order.

    A later variable replaces an earlier one and may refer to it. Raises UnresolvedError.
    """
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        kind, reference = _source(source)
        data = await _data(kind, reference, lookup)
        values |= {source.get("prefix", "") + key: value for key, value in data.items()}
    for entry in container.get("env", []):
        if "valueFrom" in entry:
            value = await _value_from(pod, entry["valueFrom"], lookup)
        else:
            value = expand(entry.get("value", ""), values)
        if value is not None:
            values[entry["name"]] = value
    return values


def _source(source: Object) -> tuple[str, Object]:
    if "secretRef" in source:
        return "secret", source["secretRef"]
    return "configmap", source["configMapRef"]


async def _data(kind: str, reference: Object, lookup: Lookup) -> dict[str, str]:
    data = await lookup(kind, reference["name"])
    if data is None and not reference.get("optional"):
        raise UnresolvedError(f'{kind} "{reference["name"]}" not found')
    # Bytes that are not UTF-8 reach the process unchanged.
    return {key: os.fsdecode(value) for key, value in (data or {}).items()}


async def _value_from(pod: Object, source: Object, lookup: Lookup) -> str | None:
    if "fieldRef" in source:
        return field(pod, source["fieldRef"]["fieldPath"])
    for key, kind in (("secretKeyRef", "secret"), ("configMapKeyRef", "configmap")):
        if key in source:
            reference = source[key]
            data = await _data(kind, reference, lookup)
            if reference["key"] not in data and not reference.get("optional"):
                raise UnresolvedError(
                    f"couldn't find key {reference['key']} in {kind} {reference['name']}"
                )
            return data.get(reference["key"])
    raise UnresolvedError(f"valueFrom {sorted(source)} is not offered by this node")
