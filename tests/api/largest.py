"""Builds the largest value that a model accepts."""

from datetime import datetime
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Le, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

NUMBER = 10**12  # device seconds of 4096 x 64 devices in 46 days; bytes of an 80B checkpoint
REAL = -1.2345678901234567e-100  # the longest text of a float
PLAIN: dict[Any, Any] = {int: NUMBER, float: REAL, bool: False, datetime: "2026-01-01T00:00:00Z"}


def largest(kind: Any, bounds: tuple[Any, ...] = ()) -> Any:
    """Return a value of a type with every field set and every text and list as long as allowed.

    Raises TypeError for a type without a bound.
    """
    most = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), None)
    inner = get_args(kind)
    if hasattr(kind, "__metadata__"):
        more = (m for found in kind.__metadata__ for m in getattr(found, "metadata", [found]))
        return largest(kind.__origin__, (*bounds, *more))
    if get_origin(kind) in (Union, UnionType):
        return largest(next(k for k in inner if k is not type(None)), bounds)
    if get_origin(kind) is Literal:
        return max(inner, key=lambda value: len(str(value)))
    if get_origin(kind) is list and most is not None:
        return [largest(inner[0])] * most
    if kind is str and most is not None:
        return "x" * most
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: _field(field) for name, field in kind.model_fields.items()}
    if kind is int and (bound := next((b.le for b in bounds if isinstance(b, Le)), None)):
        return min(bound, NUMBER)
    if kind not in PLAIN:
        raise TypeError(f"no bound for {kind}: a status field needs max_length")
    return PLAIN[kind]


def _field(field: FieldInfo) -> Any:
    return largest(field.annotation, tuple(field.metadata))
