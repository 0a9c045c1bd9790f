"""What a job reads: the claims to mount, the credentials, and the digest of its inputs."""

import hashlib
import json
from collections.abc import Iterator

from finetune_api.spec import DataSource
from finetune_api.spec.use import declared, value
from finetune_api.uri import ClaimPath, is_claim
from finetune_operator.plan.observe import Job


def claims(job: Job) -> dict[str, bool]:
    """Return the claims that the job mounts -> whether the mount is read-only."""
    spec = job.spec
    written = {ClaimPath.parse(spec.checkpoints.storage).claim}
    if spec.cache:
        written.add(ClaimPath.parse(spec.cache).claim)
    read = {source.claim for _, source in on_claims(job)}
    return {claim: claim not in written for claim in sorted(read | written)}


def on_claims(job: Job) -> Iterator[tuple[str, ClaimPath]]:
    """Return the inputs that are on claims, each with the field of the spec that names it."""
    dataset = job.spec.dataset
    named = [("model.source", job.spec.model.source)]
    for part, entries in (("train", dataset.train), ("validation", dataset.validation or [])):
        named += [(f"dataset.{part}[{n}].source", entry.source) for n, entry in enumerate(entries)]
    if dataset.chat_template and dataset.chat_template.path:
        named.append(("dataset.chatTemplate.path", dataset.chat_template.path))
    return ((field, ClaimPath.parse(uri)) for field, uri in named if is_claim(uri))


def credentials(job: Job) -> list[str]:
    """Return the Secrets that the inputs name, in the order of the pod's `envFrom`.

    If two Secrets have the same key, the later one takes precedence; the model's Secret is last.
    """
    refs = [entry.credentials_secret_ref for entry in _entries(job)]
    named = [ref.name for ref in [*refs, job.spec.model.credentials_secret_ref] if ref]
    return list(reversed(dict.fromkeys(reversed(named))))


def _entries(job: Job) -> list[DataSource]:
    return [*job.spec.dataset.train, *(job.spec.dataset.validation or [])]


def inputs_digest(job: Job, image: str) -> str:
    """Return a digest of the inputs that the result of a prepare pod is valid for.

    It does not depend on other fields, such as deadlines.
    """
    fields = [field for field in declared(type(job.spec)) if field.use.prepare]
    return digest(*(value(job.spec, field.path) for field in fields), image)


def digest(*parts: object) -> str:
    """Return a digest of JSON-ready values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
