"""Types and rules that several parts of the spec share: strictness, addresses, credentials."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.base import Message
from finetune_api.schema import Rule, rules

_CHARACTER = r"[^?#\p{Cc}]"  # Cc: control characters, such as line breaks and NUL
_CLAIM = f"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/{_CHARACTER}+"
_HUB = f"hf://[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_.]*(/{_CHARACTER}*)?"
_OBJECT = f"(s3|gs)://[a-z0-9][-a-z0-9_.]+[a-z0-9]/{_CHARACTER}+"
_NO_PARENT = "!self.matches('(^|/)[.][.](/|$)')"
_NO_ROOT = "!self.matches('^(pvc|s3|gs)://[^/]+(/[.]?)*$')"

URI_RULE = Rule(
    f"self.matches(r'^{_CLAIM}$') && {_NO_PARENT} && {_NO_ROOT}",
    "must be pvc://CLAIM/PATH (a path on a PersistentVolumeClaim of this namespace) without '..' "
    "and without control characters; "
    "hf://, s3:// and gs:// are allowed only for models and data",
)
SOURCE_RULE = Rule(
    f"self.matches(r'^({_CLAIM}|{_HUB}|{_OBJECT})$') && {_NO_PARENT} && {_NO_ROOT} && "
    "!self.startsWith('hf://datasets/')",
    "must be pvc://CLAIM/PATH, hf://ORG/NAME[/PATH], s3://BUCKET/KEY or gs://BUCKET/KEY without "
    "'..' and without control characters (write hf://ORG/NAME without 'datasets/', "
    "and the revision into the field revision)",
)
Uri = Annotated[str, Field(min_length=1, max_length=512, json_schema_extra=rules(URI_RULE))]
SourceUri = Annotated[
    str, Field(min_length=1, max_length=512, json_schema_extra=rules(SOURCE_RULE))
]
# Shorter than Uri, because every checkpoint in the status repeats it and a status has 32 kB.
StorageUri = Annotated[str, Field(min_length=1, max_length=256, json_schema_extra=rules(URI_RULE))]
# A branch, a tag or a commit. REVISION_RULE checks its form.
Revision = Annotated[str, Field(min_length=1, max_length=128)]


class Spec(Message):
    """Base of the parts of the spec. Unknown fields are errors, because this project writes it."""

    model_config = ConfigDict(extra="forbid")


NAME_PATTERN = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"  # of most objects of Kubernetes


class SecretRef(Spec):
    """A reference to a Secret in the namespace of the job."""

    name: str = Field(
        min_length=1,
        max_length=253,
        description="name is the name of the Secret, at most 253 characters.",
        json_schema_extra=rules(
            Rule(
                f"self.matches('{NAME_PATTERN}')",
                "must be the name of a Secret: a-z, 0-9, '-' and '.', beginning and ending with a "
                "letter or a digit",
            )
        ),
    )


# Rules that models and data sources share. They belong to the object that has both fields.
REVISION_RULE = Rule(
    "!has(self.revision) || self.source.startsWith('hf://') && !self.revision.contains('..') && "
    "self.revision.matches('^[A-Za-z0-9][-A-Za-z0-9_./]*$')",
    "must be a branch, a tag or a commit (letters, digits, '-', '_', '.' and '/'), and is allowed "
    "only with an hf:// source; otherwise remove it",
    ".revision",
)
CREDENTIALS_RULE = Rule(
    "!has(self.credentialsSecretRef) || !self.source.startsWith('pvc://')",
    "only hf://, s3:// and gs:// sources use credentials; remove it",
    ".credentialsSecretRef",
)
