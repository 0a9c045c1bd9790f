"""The user's pod template, as far as the operator merges its own fields into it.

The fields that the operator merges into must have the types that a pod has there, so that a string
in place of a list leads to a message and not to an exception. The API server validates the rest.
"""

from typing import Any

from finetune_api import names, reasons
from finetune_api.base import Object

_MAX_LEVELS = 32  # a pod has about a dozen

_CONTAINER: Object = {
    "securityContext": {},
    "env": [{}],
    "envFrom": [{}],
    "volumeMounts": [{}],
    "ports": [{}],
    "resources": {"limits": {}, "requests": {}},
    "lifecycle": {},
}
_AFFINITY: Object = {
    "requiredDuringSchedulingIgnoredDuringExecution": [{}],
    "preferredDuringSchedulingIgnoredDuringExecution": [{}],
}
_NODE_AFFINITY: Object = {
    "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [{}], "matchExpressions": [{}]}]
    },
    "preferredDuringSchedulingIgnoredDuringExecution": [{}],
}
_SHAPE: Object = {
    "metadata": {"labels": {}, "annotations": {}},
    "spec": {
        "affinity": {"nodeAffinity": _NODE_AFFINITY, "podAntiAffinity": _AFFINITY},
        "securityContext": {},
        "volumes": [{}],
        "initContainers": [_CONTAINER],
        "containers": [_CONTAINER],
    },
}


class UnrenderableError(Exception):
    """The pods of a job cannot be rendered; `reason` is that of the condition Accepted."""

    reason: str


class TemplateError(UnrenderableError):
    """A field of the template does not have the type that it has in a pod."""

    reason = reasons.INVALID_TEMPLATE


def merged_into(template: Object | None, path: str) -> Object:
    """Return a deep copy of the template at this path of the spec, without its nulls.

    The API server treats a null as unset. Only in a securityContext it remains, where it removes
    what the operator would set. Raise TemplateError for a field that does not have the type that it
    has in a pod.
    """
    copy = _copy(template or {}, 0, path)
    _check(copy, _SHAPE, path)
    found: Object = copy
    return found


def trainer_of(spec: Object) -> Object | None:
    """Return the trainer's container in the spec of a pod, if there is one."""
    containers = spec.get("containers") or []
    return next((c for c in containers if c.get("name") == names.CONTAINER), None)


def over(defaults: Object, context: Object) -> Object:
    """Return a securityContext with defaults; a null in it removes the default."""
    return {field: value for field, value in (defaults | context).items() if value is not None}


def _copy(value: Any, level: int, path: str, *, nulls: bool = False) -> Any:
    if level > _MAX_LEVELS:
        raise TemplateError(
            f"{path} is nested deeper than {_MAX_LEVELS} levels; a pod template is not"
        )
    if isinstance(value, dict):
        return {
            k: _copy(v, level + 1, path, nulls=k == "securityContext")
            for k, v in value.items()
            if v is not None or nulls
        }
    if isinstance(value, list):
        return [_copy(item, level + 1, path) for item in value]
    return value


def _check(value: Any, shape: Any, path: str) -> None:
    if not isinstance(value, type(shape)):
        wanted = "an object" if isinstance(shape, dict) else "a list"
        raise TemplateError(f"{path} must be {wanted}, not {value!r:.40}")
    if isinstance(shape, list):
        for number, item in enumerate(value):
            _check(item, shape[0], f"{path}[{number}]")
        return
    for field, inner in shape.items():
        if field in value:
            _check(value[field], inner, f"{path}.{field}")
