"""Every constraint of the CRD's spec, found by walking it, and a value that breaks it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Path = tuple[str | int, ...]
# What stands in the way of a field that the full manifest leaves out.
RIVALS = {"epochs": "maxSteps", "warmupRatio": "warmupSteps"}


@dataclass(frozen=True)
class Constraint:
    """One keyword of the schema at one place."""

    path: Path
    keyword: str
    schema: Any

    @property
    def name(self) -> str:
        return f"{'.'.join(map(str, self.path))}:{self.keyword}"


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


def walk(schema: Object, path: Path = ("spec",)) -> Iterator[Constraint]:
    """All constraints below a schema; rules have a table of their own."""
    for keyword in KEYWORDS:
        if keyword in schema:
            yield Constraint(path, keyword, schema)
    for field in schema.get("required", []):
        yield Constraint((*path, field), "required", schema)
    for name, inner in schema.get("properties", {}).items():
        yield from walk(inner, (*path, name))
    if "items" in schema:
        yield from walk(schema["items"], (*path, 0))


def rules(schema: Object) -> Iterator[str]:
    """Messages of all CEL rules below a schema."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield rule["message"]
    for inner in schema.get("properties", {}).values():
        yield from rules(inner)
    if "items" in schema:
        yield from rules(schema["items"])


def broken(good: Object, constraint: Constraint) -> Object:
    """The manifest with one value that breaks the constraint."""
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
        return {"string": 5, "boolean": "yes"}.get(schema["type"], "words")
    if keyword == "enum":
        return 99 if schema["type"] == "integer" else "Nonsense"
    if keyword in ("minimum", "maximum"):
        step = 0 if schema.get(f"exclusive{keyword.capitalize()}") else 1
        return schema[keyword] + (step if keyword == "maximum" else -step)
    if keyword in ("minLength", "minItems"):
        return "" if keyword == "minLength" else []
    if keyword == "maxLength":
        prefix = "pvc://w/" if schema[keyword] == 512 else ""
        return prefix + "x" * (schema[keyword] + 1)
    items = schema["items"]
    named = {"source": "pvc://w/x"} if "source" in items.get("properties", {}) else {"name": "x"}
    return ["x" if items["type"] == "string" else named] * (schema["maxItems"] + 1)
