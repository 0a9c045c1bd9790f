"""Types and rules that several parts of the spec share: strictness, addresses, credentials."""

from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.base import Message
from finetune_api.schema import Rule, rules

# Characters that names must not contain: control characters (Cc), such as line breaks and NUL, the
# separators that end a line (U+2028 and U+2029), and marks that change the direction of the text
# around them, so that one name looks like another one.
CONTROLS = r"\p{Cc}\x{61c}\x{200e}\x{200f}\x{2028}-\x{202e}\x{2066}-\x{2069}"
_CHARACTER = f"[^?#{CONTROLS}]"
_CLAIM = f"pvc://[a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/{_CHARACTER}+"
_HUB = f"hf://[A-Za-z0-9][-A-Za-z0-9_.]*/[A-Za-z0-9][-A-Za-z0-9_.]*(/{_CHARACTER}*)?"
_OBJECT = f"(s3|gs)://[a-z0-9][-a-z0-9_.]+[a-z0-9]/{_CHARACTER}+"
_NO_PARENT = "!self.matches('(^|/)[.][.](/|$)')"
_NO_ROOT = "!self.matches('^(pvc|s3|gs)://[^/]+(/[.]?)*$')"

URI_RULE = Rule(
    f"self.matches(r'^{_CLAIM}$') && {_NO_PARENT} && {_NO_ROOT}",
    "must be pvc://CLAIM/PATH (a path on a PersistentVolumeClaim of this namespace, whose name "
    "has at most 253 characters) without '..', '?', '#' and characters that control the text, such "
    "as line breaks and marks of direction; "
    "hf://, s3:// and gs:// are allowed only for models and data",
)
SOURCE_RULE = Rule(
    f"self.matches(r'^({_CLAIM}|{_HUB}|{_OBJECT})$') && {_NO_PARENT} && {_NO_ROOT} && "
    "!self.startsWith('hf://datasets/')",
    "must be pvc://CLAIM/PATH (CLAIM of at most 253 characters), hf://ORG/NAME[/PATH], "
    "s3://BUCKET/KEY or gs://BUCKET/KEY without '..', '?', '#' and characters that control the "
    "text, such as line breaks and marks of direction (write hf://ORG/NAME without 'datasets/', "
    "and the revision into the field revision)",
)
Uri = Annotated[str, Field(min_length=1, max_length=512, json_schema_extra=rules(URI_RULE))]
SourceUri = Annotated[
    str, Field(min_length=1, max_length=512, json_schema_extra=rules(SOURCE_RULE))
]
# Shorter than Uri, because every checkpoint in the status repeats it and a status has 32 KiB.
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
