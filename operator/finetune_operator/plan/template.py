"""The user's pod template, as far as the operator merges its own fields into it.

The rest of the template is the API server's to judge. What is merged into has to have the shape of
a pod's: a string where a list belongs must end in a message, not in the operator.
"""

from typing import Any

from finetune_api.base import Object

_MOST_LEVELS = 32  # a pod has about a dozen

_CONTAINER: Object = {
    "securityContext": {},
    "env": [{}],
    "envFrom": [{}],
    "volumeMounts": [{}],
    "resources": {"limits": {}, "requests": {}},
}
_SHAPE: Object = {
    "metadata": {"labels": {}, "annotations": {}},
    "spec": {
        "securityContext": {},
        "volumes": [{}],
        "initContainers": [_CONTAINER],
        "containers": [_CONTAINER],
    },
}


class UnrenderableError(Exception):
    """No pod can be made of the job; `reason` is the condition's."""

    reason: str


class TemplateError(UnrenderableError):
    """The template has not the shape of a pod's."""

    reason = "InvalidTemplate"


def merged_into(template: Object | None) -> Object:
    """A copy that may be changed, without nulls: to the API server they are absent fields."""
    copy = _copy(template or {}, 0)
    _check(copy, _SHAPE, "workers.template")
    found: Object = copy
    return found


def _copy(value: Any, level: int) -> Any:
    if level > _MOST_LEVELS:
        raise TemplateError(
            f"workers.template is nested deeper than {_MOST_LEVELS} levels; a pod is not"
        )
    if isinstance(value, dict):
        return {k: _copy(v, level + 1) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_copy(item, level + 1) for item in value]
    return value


def _check(value: Any, shape: Any, path: str) -> None:
    if not isinstance(value, type(shape)):
        wanted = "an object" if isinstance(shape, dict) else "a list"
        raise TemplateError(f"{path} must be {wanted}; {value!r:.40} is none")
    if isinstance(shape, list):
        for number, item in enumerate(value):
            _check(item, shape[0], f"{path}[{number}]")
        return
    for field, inner in shape.items():
        if field in value:
            _check(value[field], inner, f"{path}.{field}")
