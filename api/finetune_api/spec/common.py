"""What the parts of the spec share: strictness, and addresses on claims."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.base import Message
from finetune_api.schema import Rule, rules

URI_RULE = Rule(
    "self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[^?#]+$') && "
    "!self.matches('(^|/)[.][.](/|$)') && !self.matches('^pvc://[^/]+(/[.]?)*$')",
    "must be pvc://CLAIM/PATH (a path on a PersistentVolumeClaim of this namespace) without '..'",
)
Uri = Annotated[str, Field(min_length=1, max_length=512, json_schema_extra=rules(URI_RULE))]
# Shorter: it stands in the status of every checkpoint, and a status has 32 kB.
StorageUri = Annotated[str, Field(min_length=1, max_length=256, json_schema_extra=rules(URI_RULE))]


class Spec(Message):
    """Base of the parts of the spec: an unknown field is an error when we write one."""

    model_config = ConfigDict(extra="forbid")


class SecretRef(Spec):
    """A Secret of the job's namespace."""

    name: str = Field(
        min_length=1,
        max_length=253,
        description="Name of the Secret.",
        json_schema_extra=rules(
            Rule(
                "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
                "must be the name of a Secret: a-z, 0-9, '-' and '.'",
            )
        ),
    )
