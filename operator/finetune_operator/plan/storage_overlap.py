"""The rule that a run does not write among the files that it reads.

Storage and cache must not be the folder of a model or of data, nor be in one: checkpoints and logs
would appear among the user's files, and later jobs would read them as data. A folder above that of
an input is fine, except for the one folder of a run that is replaced as a whole.
"""

from finetune_api import reasons
from finetune_api.uri import ClaimPath, is_inside
from finetune_operator.plan import inputs
from finetune_operator.plan.observe import Job
from finetune_operator.plan.template import UnrenderableError

_FILES = (".jsonl", ".json", ".csv", ".parquet", ".arrow", ".gz", ".jinja")
_PATTERN = frozenset("*?[")
_FINAL = "final"  # the finished model, in storage
_HARM = "files of the run would be written among the inputs; choose another folder"


class StorageOverlapsInputError(UnrenderableError):
    """A folder that the run writes is among its inputs."""

    reason = reasons.STORAGE_OVERLAPS_INPUT


def check(job: Job) -> None:
    """Raise StorageOverlapsInputError if storage or cache is a folder of an input or in one."""
    storage = ClaimPath.parse(job.spec.checkpoints.storage)
    written = {"checkpoints.storage": storage}
    if job.spec.cache:
        written["cache"] = ClaimPath.parse(job.spec.cache)
    for field, source in inputs.on_claims(job):
        for name, folder in written.items():
            if folder.claim == source.claim and (relation := _relation(folder, source, field)):
                raise StorageOverlapsInputError(f"{name} {folder} {relation}: {_HARM}")
        final = ClaimPath(storage.claim, f"{storage.path}/{_FINAL}")
        if source.claim == final.claim and is_inside(source.path, final.path):
            raise StorageOverlapsInputError(
                f"{field} {source} is in {final}, which the run replaces; choose another folder "
                "for checkpoints.storage"
            )


def _relation(folder: ClaimPath, source: ClaimPath, field: str) -> str | None:
    """Return how a folder is among an input's files, as a clause, or None if it is not."""
    parts = source.path.split("/")
    first = next((n for n, part in enumerate(parts) if _PATTERN & set(part)), None)
    if first is None and not parts[-1].endswith(_FILES):
        if folder.path == source.path:
            return f"is {field}"
        return f"is in {field} ({source})" if is_inside(folder.path, source.path) else None
    # A file, or a pattern that finds files below the folder without one.
    above = "/".join(parts[:-1] if first is None else parts[:first])
    if folder.path == above:
        return f"is the folder of {field} ({source})"
    deep = first is not None and (first < len(parts) - 1 or "**" in source.path)
    return f"is in {field} ({source})" if deep and is_inside(folder.path, above) else None
