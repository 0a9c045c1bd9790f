"""Keeps what a run writes apart from the inputs of the user, before anything is written.

Folders are compared as they are on the mounted volumes: links are resolved, and two claims may be
the same volume. The API compares the names of addresses already when a job is applied.
"""

import glob
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_api.uri import is_claim
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.paths import claim_path

_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class _Input:
    """A file or folder that the user provides."""

    field: str
    uri: str
    path: Path
    owns_below: bool = True  # whether everything below it belongs to the input


def check(config: RunConfig) -> None:
    """Raise TrainerError 64 if the run would write among the files of its model or data.

    That is so if checkpoints.storage is such a folder, contains it or is in it. The cache may
    contain inputs, for example a model that an earlier job downloaded.
    """
    inputs = _inputs(config)
    storage = config.checkpoints.storage
    for found in inputs:
        _check("checkpoints.storage", storage, found, config.mounts, may_contain=False)
    if config.cache:
        for found in inputs:
            _check("the cache", config.cache, found, config.mounts, may_contain=True)


def _check(
    name: str, uri: str, found: _Input, mounts: dict[str, str], *, may_contain: bool
) -> None:
    written = _parents(claim_path(uri, mounts))
    read = _parents(found.path)
    if found.path.exists() and written.exists and written.chain[0] == read.chain[0]:
        relation = "is the same folder as"
    elif found.path.exists() and found.owns_below and read.chain[0] in written.chain:
        relation = "is in"
    elif written.exists and not may_contain and written.chain[0] in read.chain:
        relation = "contains"
    else:
        return
    raise TrainerError(
        ExitCode.BAD_CONFIGURATION,
        f"{name} {uri} {relation} {found.field} {found.uri} (links are resolved), so the run would "
        "write among your files; choose another folder",
    )


@dataclass(frozen=True)
class _Parents:
    """A path and the folders above it, as far as they exist; the path itself comes first."""

    exists: bool
    chain: list[_Identity]


def _parents(path: Path) -> _Parents:
    real = path.resolve()
    chain = [_identity(place) for place in (real, *real.parents)]
    return _Parents(chain[0] is not None, [found for found in chain if found is not None])


def _identity(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _inputs(config: RunConfig) -> list[_Input]:
    found = []
    if is_claim(config.model.source):
        path = claim_path(config.model.source, config.mounts)
        found.append(_Input("model.source", config.model.source, path))
    for field, sources in (
        ("dataset.train", config.dataset.train),
        ("dataset.validation", config.dataset.validation or []),
    ):
        on_claims = [source.source for source in sources if is_claim(source.source)]
        found += [_data(field, uri, config.mounts) for uri in on_claims]
    return found


def _data(field: str, uri: str, mounts: dict[str, str]) -> _Input:
    path = claim_path(uri, mounts)
    if path.exists() or not glob.has_magic(uri):
        return _Input(field, uri, path)
    fixed = path
    while glob.has_magic(str(fixed)) and fixed != fixed.parent:
        fixed = fixed.parent
    return _Input(field, uri, fixed, owns_below="**" in uri)
