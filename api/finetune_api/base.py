"""Base classes of every message: camelCase on the wire, frozen in memory."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

API_GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{API_GROUP}/{VERSION}"

Object = dict[str, Any]
"""An API object as JSON has it."""


class Message(BaseModel):
    """A versioned message. Readers ignore unknown fields: the other side may be newer."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        # Infinity and NaN are no JSON: one of them makes the API server refuse a whole patch.
        allow_inf_nan=False,
    )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict in wire names; absent means absent, never null."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_json(self) -> str:
        """Compact JSON in wire names."""
        return self.model_dump_json(exclude_none=True)

    def replace(self, **changes: Any) -> Self:
        """A validated copy with some fields changed (python names); itself if none is."""
        known = self.__dict__
        if all(name in known and known[name] == value for name, value in changes.items()):
            return self
        return type(self).model_validate(known | changes)


CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""What moves a terminal's cursor, and what reorders the text around it, for a regular expression;
without the line break and the tab."""
_CONTROLS = re.compile(f"[{CONTROLS}]")


def clean(text: str | None) -> str | None:
    """Text that comes out of a pod, as it may be shown to people."""
    return text and _CONTROLS.sub("\ufffd", text)


Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A number of things. Beyond it not every JSON reader is exact, and far beyond it the API server
would refuse the whole status."""
Step = Annotated[int, Field(ge=0, le=10**12)]
"""A number of steps or rows, small enough for sums and products of them."""
Rows = Annotated[int, Field(ge=1, le=10**12)]
"""A number of rows that is divided by."""
Seconds = Annotated[float, Field(ge=0, le=1e12)]
"""A duration."""


def _parse_time(value: object) -> object:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and (value.tzinfo is not UTC or value.microsecond):
        try:
            return value.astimezone(UTC).replace(microsecond=0)
        except (OverflowError, OSError):  # the first or the last day, with an offset
            raise ValueError(f"{value.isoformat()} is no moment in UTC") from None
    return value


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC with second precision, as Kubernetes writes times."""
    whole = value.astimezone(UTC).replace(microsecond=0, tzinfo=None)
    return f"{whole.isoformat()}Z"  # strftime takes five times as long


Time = Annotated[
    datetime,
    BeforeValidator(_parse_time),
    PlainSerializer(format_time, return_type=str, when_used="always"),
]
"""A moment in UTC, whole seconds, RFC 3339 on the wire."""
