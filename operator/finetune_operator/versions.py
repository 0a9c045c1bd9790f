"""Versions of jobs as the cache keeps them: compressed JSON, until one is needed.

As Python objects a job takes 20 to 40 kB and a large one many megabytes, as compressed JSON 1.5 kB.
"""

import json
import zlib
from dataclasses import dataclass, replace

from pydantic_core import to_json

from finetune_api.base import Message, Object
from finetune_api.status import FINISHED
from finetune_client.decode import decode
from finetune_operator.plan.observe import Job
from finetune_operator.plan.pod_status import parse_time
from finetune_operator.plan.storage_use import StorageUse
from finetune_operator.queue import Key

LARGE = 32 * 1024
"""Bytes of templates above which a job is parsed each time it is needed.

Everything else in a job is bounded by its definition.
"""
_READ = ("name", "namespace", "uid", "resourceVersion", "generation", "labels", "deletionTimestamp")


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a job."""

    key: Key
    uid: str
    number: int  # see number_of
    large: bool
    ended: float | None  # see ended_at
    use: StorageUse | None  # of its storage, unless it has ended
    body: bytes

    @classmethod
    def of(cls, item: Object) -> "Version":
        """Return the version that an API object shows, without what the operator never reads.

        Two thirds of an object are managedFields.
        """
        metadata = item["metadata"]
        kept = {name: metadata[name] for name in _READ if name in metadata}
        text = _encode(
            {"metadata": kept} | {name: item[name] for name in ("spec", "status") if name in item}
        )
        return cls(
            key=key_of(item),
            uid=metadata["uid"],
            number=number_of(item),
            large=is_large(item),
            ended=ended_at(item),
            use=StorageUse.of(item),
            body=zlib.compress(text, 1),
        )

    def parse(self, before: Job | None) -> Job:
        """Return the job; ValueError if it cannot be parsed. See `Job.of` for `before`."""
        return Job.of(decode(zlib.decompress(self.body)), before)


def key_of(item: Object) -> Key:
    """Return namespace and name of an API object."""
    return item["metadata"]["namespace"], item["metadata"]["name"]


def number_of(item: Object) -> int:
    """Return the version of an API object.

    It is comparable between all objects of the kind, even after a name was reused.
    """
    return int(item["metadata"]["resourceVersion"])


def is_large(item: Object) -> bool:
    """Return whether the templates of a job are large."""
    parts = (part for part in item["spec"].values() if isinstance(part, dict))
    return sum(len(_encode(part["template"])) for part in parts if "template" in part) > LARGE


def ended_at(item: Object) -> float | None:
    """Return the Unix time at which a job ended; None if it goes on."""
    status = item.get("status", {})
    if status.get("phase") not in FINISHED:
        return None
    end = parse_time(status.get("completionTime"))
    return end.timestamp() if end else 0.0


def without_templates(job: Job) -> Job:
    """Return a large job without what makes it large, for all uses but planning."""
    parts = {name: getattr(job.spec, name) for name in type(job.spec).model_fields}
    small = {
        name: part.replace(template=None)
        for name, part in parts.items()
        if isinstance(part, Message) and getattr(part, "template", None)
    }
    return replace(job, spec=job.spec.replace(**small))


def _encode(value: object) -> bytes:
    try:
        return to_json(value)
    except ValueError:
        return json.dumps(value).encode()  # pydantic_core refuses more than 255 levels.
