"""The base class of every message, and types that the messages share."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.alias_generators import to_camel

API_GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{API_GROUP}/{VERSION}"

Object = dict[str, Any]
"""An API object, as it is parsed from JSON."""


class Message(BaseModel):
    """A message with camelCase names in JSON, immutable in memory.

    Readers ignore unknown fields, because the writer may be newer.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        # JSON has no Infinity and NaN: the API server would refuse the complete patch.
        allow_inf_nan=False,
    )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict with the JSON names. Unset fields are left out, never null."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_json(self) -> str:
        """Return compact JSON with the JSON names."""
        return self.model_dump_json(exclude_none=True)

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with changed fields (Python names), or itself if none changes."""
        known = self.__dict__
        if all(name in known and known[name] == value for name, value in changes.items()):
            return self
        return type(self).model_validate(known | changes)


CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""Characters that move a terminal's cursor or reorder the text around it, without line break and
tab, for a character class of a regular expression."""
_CONTROLS = re.compile(f"[{CONTROLS}]")


def clean(text: str | None) -> str | None:
    """Return text from a pod with the control characters replaced, so that it can be shown."""
    return text and _CONTROLS.sub("\ufffd", text)


Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A number of things. Beyond its bound not every JSON reader is exact, and far beyond it the API
server would refuse the complete status."""
Step = Annotated[int, Field(ge=0, le=10**12)]
"""A number of steps or rows, small enough that sums and products of them stay exact."""
Rows = Annotated[int, Field(ge=1, le=10**12)]
"""A number of rows that is used as a divisor, hence not 0."""
Seconds = Annotated[float, Field(ge=0, le=1e12)]
"""A duration in seconds."""


def _parse_time(value: object) -> object:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime) and (value.tzinfo is not UTC or value.microsecond):
        try:
            return value.astimezone(UTC).replace(microsecond=0)
        except (
            OverflowError,
            OSError,
        ):  # the first or the last day, with an offset
            raise ValueError(f"{value.isoformat()} cannot be expressed in UTC") from None
    return value


def format_time(value: datetime) -> str:
    """Return a time as Kubernetes writes it: RFC 3339, in UTC, in whole seconds."""
    utc = value.astimezone(UTC).replace(microsecond=0, tzinfo=None)
    return f"{utc.isoformat()}Z"  # five times as fast as strftime


Time = Annotated[
    datetime,
    BeforeValidator(_parse_time),
    PlainSerializer(format_time, return_type=str, when_used="always"),
]
"""A time in UTC in whole seconds, written as RFC 3339."""
