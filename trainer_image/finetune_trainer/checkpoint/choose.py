"""Which checkpoint a gang resumes from: every rank reads a share of it back, all agree."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.run_dir.paths import RunPaths


def newest_whole(
    paths: RunPaths, run_digest: str, control: Any, advance: Callable[[], None]
) -> tuple[Path, Manifest] | None:
    """The newest checkpoint of this run whose every file is whole; collective over `control`.

    Rank 0 looks and the others believe it: shared file systems may show them less. Were it to read
    all of a large checkpoint by itself, the others would wait in the broadcast for longer than any
    time-out.
    """
    candidates = store.candidates(paths, run_digest) if dist.get_rank() == 0 else iter(())
    while (found := _next(candidates, paths, control)) is not None:
        folder, manifest = found
        damaged = _first(_damaged(folder, _share(manifest), advance), control)
        if damaged is None:
            return folder, manifest
        if dist.get_rank() == 0:
            store.distrust(folder, damaged)
    return None


def _next(
    candidates: Iterator[tuple[Path, Manifest]], paths: RunPaths, control: Any
) -> tuple[Path, Manifest] | None:
    found = next(candidates, None)
    told = [(found[0].name, found[1].to_dict()) if found else None]
    dist.broadcast_object_list(told, src=0, group=control)
    if told[0] is None:
        return None
    name, fields = told[0]
    return paths.checkpoints / name, Manifest.model_validate(fields)


def _share(manifest: Manifest) -> Manifest:
    """This rank's files: about as many bytes for each."""
    largest_first = sorted(manifest.files, key=lambda entry: (-entry.size_bytes, entry.path))
    return manifest.replace(files=largest_first[dist.get_rank() :: dist.get_world_size()])


def _damaged(folder: Path, share: Manifest, advance: Callable[[], None]) -> str | None:
    try:
        damaged = store.damaged_file(folder, share, advance)
    except OSError as error:
        return f" cannot be read ({error})"
    return f"/{damaged} does not match its checksum" if damaged else None


def _first(problem: str | None, control: Any) -> str | None:
    heard: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(heard, problem, group=control)
    return next((text for text in heard if text is not None), None)
