"""Builders for schema that pydantic cannot express: CEL rules and open objects."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rule:
    """A CEL rule and the message that a user sees when it does not hold."""

    rule: str
    message: str
    field_path: str | None = None
    optional_old_self: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `x-kubernetes-validations`."""
        entry: dict[str, Any] = {"rule": self.rule, "message": self.message}
        if self.field_path:
            entry["fieldPath"] = self.field_path
        if self.optional_old_self:
            entry["optionalOldSelf"] = True
        return entry


def rules(*entries: Rule) -> dict[str, Any]:
    """Return the `json_schema_extra` that attaches rules to a field or a model."""
    return {"x-kubernetes-validations": [entry.to_dict() for entry in entries]}


def opaque(**declared: dict[str, Any]) -> dict[str, Any]:
    """Return an object that keeps unknown properties. CEL sees only the declared ones."""
    schema: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if declared:
        schema["properties"] = declared
    return schema
