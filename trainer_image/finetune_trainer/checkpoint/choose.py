"""Chooses the checkpoint that a gang resumes from.

Every rank reads back a share of a candidate's files, and all ranks agree on the result.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.run_dir.paths import RunPaths


def newest_valid(
    paths: RunPaths, run_digest: str, control: Any, advance: Callable[[], None]
) -> tuple[Path, Manifest] | None:
    """Return the newest checkpoint of this run whose files all match their checksums.

    Collective over the group `control`. Rank 0 lists the candidates for all ranks, because a shared
    file system may show other nodes fewer of them. It does not read a large checkpoint alone: the
    other ranks would wait in the broadcast for longer than its timeout.
    """
    candidates = store.candidates(paths, run_digest) if dist.get_rank() == 0 else iter(())
    while (candidate := _next(candidates, paths, control)) is not None:
        folder, manifest = candidate
        damage = _first(_damage(folder, _share(manifest), advance), control)
        if damage is None:
            return folder, manifest
        if dist.get_rank() == 0:
            store.unmark(folder, damage)
    return None


def _next(
    candidates: Iterator[tuple[Path, Manifest]], paths: RunPaths, control: Any
) -> tuple[Path, Manifest] | None:
    """Return rank 0's next candidate on every rank."""
    found = next(candidates, None)
    message = [(found[0].name, found[1].to_dict()) if found else None]
    dist.broadcast_object_list(message, src=0, group=control)
    if message[0] is None:
        return None
    name, fields = message[0]
    return paths.checkpoints / name, Manifest.model_validate(fields)


def _share(manifest: Manifest) -> Manifest:
    """Return the manifest with this rank's files only: about as many bytes for every rank."""
    largest_first = sorted(manifest.files, key=lambda entry: (-entry.size_bytes, entry.path))
    return manifest.replace(files=largest_first[dist.get_rank() :: dist.get_world_size()])


def _damage(folder: Path, share: Manifest, advance: Callable[[], None]) -> str | None:
    """Return what is wrong with a share, as text that follows the folder's name, or None."""
    try:
        damaged = store.damaged_file(folder, share, advance)
    except OSError as error:
        return f" cannot be read ({error})"
    return f"/{damaged} does not match its checksum" if damaged else None


def _first(problem: str | None, control: Any) -> str | None:
    """Return the problem of the lowest rank that has one."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem, group=control)
    return next((text for text in problems if text is not None), None)
