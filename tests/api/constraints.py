"""Finds every constraint in the schema of the spec, and a value that violates it."""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api.base import Object

Path = tuple[str | int, ...]
# The field that excludes a field which the full manifest leaves out.
RIVALS = {
    "epochs": "maxSteps",
    "warmupRatio": "warmupSteps",
    "validationFraction": "validation",
    "inline": "path",
}


@dataclass(frozen=True)
class Constraint:
    """One keyword of the schema at one path."""

    path: Path
    keyword: str
    schema: Any

    @property
    def name(self) -> str:
        return f"{field(self.path)}:{self.keyword}"


def field(path: Path) -> str:
    """Return a path as the API server writes it: spec.dataset.train[0].source."""
    return re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, path)))


KEYWORDS = (
    "type",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
)
# Keywords that refuse nothing themselves, or that are handled elsewhere.
OTHERS = {
    *("description", "default", "required", "properties", "items"),
    *("exclusiveMinimum", "exclusiveMaximum"),
    *("x-kubernetes-validations", "x-kubernetes-preserve-unknown-fields"),
}


def walk(schema: Object, path: Path = ("spec",)) -> Iterator[Constraint]:
    """Return all constraints below a schema, without its rules.

    Raises ValueError for a keyword that is in neither list.
    """
    if unknown := set(schema) - OTHERS - set(KEYWORDS):
        raise ValueError(f"{field(path)}: what do {sorted(unknown)} refuse?")
    for keyword in KEYWORDS:
        if keyword in schema:
            yield Constraint(path, keyword, schema)
    for required in schema.get("required", []):
        yield Constraint((*path, required), "required", schema)
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, (*path, name))
    if "items" in schema:
        yield from walk(schema["items"], (*path, 0))


@dataclass(frozen=True)
class Place:
    """One CEL rule at one path of the schema."""

    field: str  # the field that a refusal names
    message: str


def rules(schema: Object, path: Path) -> Iterator[Place]:
    """Return all CEL rules below a schema, each with the field that its refusal names."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield Place(f"{field(path)}{rule.get('fieldPath', '')}".lstrip("."), rule["message"])
    for name, inner in schema.get("properties", {}).items():
        yield from rules(inner, (*path, name))
    if "items" in schema:
        yield from rules(schema["items"], (*path, 0))


def broken(good: Object, constraint: Constraint) -> Object:
    """Return the manifest with one value that violates the constraint."""
    job = copy.deepcopy(good)
    *parents, last = constraint.path
    place: Any = job
    for step in parents:
        if isinstance(step, str) and step not in place:
            place[step] = {}
        place = place[step]
    if constraint.keyword == "required":
        del place[last]
        return job
    if last in RIVALS:
        place.pop(RIVALS[str(last)], None)
    place[last] = bad_value(constraint)
    return job


def bad_value(constraint: Constraint) -> Any:
    schema, keyword = constraint.schema, constraint.keyword
    if keyword == "type":
        return {"string": 5, "boolean": "yes"}.get(schema["type"], "text")
    if keyword == "enum":
        return 99 if schema["type"] == "integer" else "Nonsense"
    if keyword in ("minimum", "maximum"):
        step = 0 if schema.get(f"exclusive{keyword.capitalize()}") else 1
        return schema[keyword] + (step if keyword == "maximum" else -step)
    if keyword in ("minLength", "minItems"):
        return "" if keyword == "minLength" else []
    if keyword == "maxLength":
        prefix = "pvc://w/" if "x-kubernetes-validations" in schema else ""
        return prefix + "x" * (schema[keyword] + 1)
    items = schema["items"]
    known = {"source": "pvc://w/x", "type": "WandB", "name": "x"}
    key = next((key for key in known if key in items.get("properties", {})), "name")
    named = {key: known[key]}
    return ["x" if items["type"] == "string" else named] * (schema["maxItems"] + 1)
