"""Declarations of how the operator uses each field of the spec.

Several lists must agree with the spec: the fields that a rule of the CRD freezes, the fields that
the result of a prepare pod depends on, the fields that the pods receive, and the fields that the
prepared rows depend on. Each field declares its part in them once, as an annotation of its type,
and all lists are derived from these declarations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache, reduce
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo


class Change(Enum):
    """When a field may be changed after the first attempt was committed."""

    NEVER = "never"
    WHILE_SUSPENDED = "while condition Suspended is True"
    ALWAYS = "always"


class Pods(Enum):
    """The pods that receive a field in their RunConfig."""

    NONE = "none"
    WORKERS = "workers"
    ALL = "all"


@dataclass(frozen=True)
class Use:
    """How the operator uses a field of the spec."""

    change: Change
    prepare: bool
    """Whether the result of a prepare pod is discarded when the field changes."""
    pods: Pods


INPUT = Use(Change.NEVER, prepare=True, pods=Pods.ALL)
"""An input of the run, which no attempt may see changed."""
GANG = Use(Change.WHILE_SUSPENDED, prepare=False, pods=Pods.NONE)
"""A property of the gang's pods, which the operator writes into their manifests."""
TRAINER_SETTING = Use(Change.ALWAYS, prepare=False, pods=Pods.ALL)
"""A setting that the pods apply from the next attempt on."""
WORKER_SETTING = Use(Change.ALWAYS, prepare=False, pods=Pods.WORKERS)
"""A setting that the workers apply from the next attempt on."""
OPERATOR_SETTING = Use(Change.ALWAYS, prepare=False, pods=Pods.NONE)
"""A setting that only the operator reads."""


class Rows(Enum):
    """How the digest of the prepared data depends on a field of dataset or training."""

    VALUE = "the value of the field is a part of the digest"
    RESOLVED = "the trainer adds what the field leads to, for example the contents of a file"
    UNRELATED = "the prepared rows do not depend on the field"


@dataclass(frozen=True)
class Declared:
    """A field of the spec with its use."""

    path: tuple[str, ...]  # Python names
    use: Use
    optional: bool  # unset by default, so that a rule must test for its presence

    @property
    def wire_path(self) -> str:
        """The path as a manifest writes it, for example checkpoints.storage."""
        return ".".join(to_camel(name) for name in self.path)


@cache
def declared(model: type[BaseModel]) -> tuple[Declared, ...]:
    """Return the fields of a model that declare their use, in the order of their declaration.

    A field without a declaration must be a model whose fields have one. Raises TypeError for a
    field that has no declaration at all.
    """
    return tuple(_declared(model, ()))


def _declared(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[Declared]:
    for name, field in model.model_fields.items():
        path = (*above, name)
        use = next((item for item in field.metadata if isinstance(item, Use)), None)
        inner = _model(field)
        if use is not None:
            yield Declared(path, use, optional=field.default is None)
        elif inner is not None:
            yield from _declared(inner, path)
        else:
            raise TypeError(f"{'.'.join(path)}: declare its Use (spec/use.py)")


def received(spec: BaseModel, role: Literal["prepare", "worker"]) -> dict[str, Any]:
    """Return what a pod of a role receives of a spec, as the fields of its RunConfig.

    A part of the spec of which the pod receives every field is passed as a whole; otherwise each
    field is passed under its own name.
    """
    return {path[-1]: _get(spec, path) for path in _received(type(spec), role)}


@cache
def _received(model: type[BaseModel], role: str) -> tuple[tuple[str, ...], ...]:
    to = {Pods.ALL, Pods.WORKERS} if role == "worker" else {Pods.ALL}
    paths: list[tuple[str, ...]] = []
    for part in model.model_fields:
        fields = [field for field in declared(model) if field.path[0] == part]
        passed = [field.path for field in fields if field.use.pods in to]
        paths += [(part,)] if len(passed) == len(fields) else passed
    return tuple(paths)


def row_values(part: BaseModel) -> dict[str, Any]:
    """Return the values that belong to the digest of the prepared data, by their JSON names."""
    return {
        to_camel(name): getattr(part, name)
        for name, use in row_uses(type(part)).items()
        if use is Rows.VALUE
    }


def row_uses(model: type[BaseModel]) -> dict[str, Rows]:
    """Return how the prepared rows depend on each field; TypeError for an undeclared field."""
    return {name: _rows(name, field) for name, field in model.model_fields.items()}


def value(spec: BaseModel, path: tuple[str, ...]) -> Any:
    """Return the value of a field; models become JSON-ready dicts without their unset fields."""
    found = _get(spec, path)
    if isinstance(found, BaseModel):
        return found.model_dump(mode="json", exclude_none=True)
    return found


def _get(spec: BaseModel, path: tuple[str, ...]) -> Any:
    return reduce(getattr, path, spec)


def _rows(name: str, field: FieldInfo) -> Rows:
    for item in field.metadata:
        if isinstance(item, Rows):
            return item
    raise TypeError(f"{name}: declare its Rows (spec/use.py)")


def _model(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model that a field holds, if it holds one and not a list of them."""
    kind = field.annotation
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    models = [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]
    return models[0] if models else None
