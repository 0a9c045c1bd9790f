"""Chooses the checkpoint that a gang resumes from, and loads it into each rank's optimizer.

Every rank reads back a share of a candidate's files, and all ranks agree on the result. The
checkpoint may have been saved by a gang of any world size.
"""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.fragments import fragments, mismatches, optimizer_state, tensors
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model.engine import Engine
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
    while (candidate := _next_candidate(candidates, paths, control)) is not None:
        folder, manifest = candidate
        damage = _first_problem(_damage(folder, _share(manifest), advance), control)
        if damage is None:
            return folder, manifest
        if dist.get_rank() == 0:
            store.unmark(folder, damage)
    return None


def _next_candidate(
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


def _first_problem(problem: str | None, control: Any) -> str | None:
    """Return the problem of the lowest rank that has one."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem, group=control)
    return next((text for text in problems if text is not None), None)


def load(engine: Engine, folder: Path, manifest: Manifest, advance: Callable[[], None]) -> None:
    """Fill this rank's fragments from a checkpoint, and restore its random state if possible.

    `advance` is called for every slice that was read. Raises TrainerError (78) if the live weights
    do not match the master weights afterwards.
    """
    reader = CheckpointReader(folder, manifest)
    flats = {}
    for fragment in fragments(engine):
        flats[id(fragment.flat)] = fragment.flat
        for kind, target in tensors(engine, fragment).items():
            target.copy_(reader.read(fragment.name, kind, fragment.offset, fragment.numel))
            advance()
    for flat in flats.values():
        # NB: a separate step tensor for each: AdamW increments it once per flat tensor.
        optimizer_state(engine, flat)["step"].fill_(float(reader.adam_step))
    _refresh_weights(engine)
    assert_consistent(engine)
    if manifest.world_size == dist.get_world_size():
        _restore_random(folder / f"rng-{dist.get_rank():05d}.json")


def assert_consistent(engine: Engine) -> None:
    """Raise TrainerError (78) if a live weight differs from the rounded master weight.

    This happens if this version of DeepSpeed stores its slices differently.
    """
    wrong = mismatches(engine)
    if wrong:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"live weights differ from the master weights in {len(wrong)} parameters, first "
            f"{wrong[0]}; this trainer image must not be used with ZeRO stage {engine.stage}",
        )


def _refresh_weights(engine: Engine) -> None:
    optimizer = engine.optimizer
    if engine.stage < 3:
        optimizer.update_lp_params()
        return
    for index, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        optimizer.fp16_partitioned_groups_flat[index].data.copy_(master.data)
        optimizer._unflatten_partitioned_parameters(index)


def _restore_random(path: Path) -> None:
    states = json.loads(path.read_text())

    def tensor(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    torch.set_rng_state(tensor(states["cpu"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensor(states["cuda"]))
