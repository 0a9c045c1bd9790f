"""Saving: every rank writes its fragments, rank 0 publishes when all have."""

import base64
import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import Manifest, ManifestEntry
from finetune_trainer import fence, tensor_file
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.fragments import adam_step, fragments, moments
from finetune_trainer.data import digest
from finetune_trainer.engine import Engine
from finetune_trainer.errors import TrainerError
from finetune_trainer.files import sync_folder, write_atomic
from finetune_trainer.paths import RunPaths

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a run stands when it is saved."""

    step: int
    rows_consumed: int
    tokens_seen: int
    skipped: int
    validation_loss: float | None


@dataclass(frozen=True)
class Owner:
    """On whose behalf files are written."""

    job_uid: str
    run_digest: str
    attempt: int
    epoch: int


def save(
    engine: Engine,
    paths: RunPaths,
    owner: Owner,
    position: Position,
    control: Any,
    advance: Callable[[], None],
) -> str | None:
    """Write, publish and verify a checkpoint; collective over `control` (a gloo group).

    `advance` is called as work gets done: a save of hundreds of gigabytes is no hang.
    Returns None when it is published and verified on all ranks, else what went wrong on the first
    rank that failed: training goes on, the older checkpoints stand. TrainerError 79 when fenced.
    """
    folder = paths.checkpoint(position.step, owner.epoch)
    entries, problem = _try(lambda: _write(engine, folder, advance))
    failed = _first_problem(problem, control)
    if failed is None:
        gathered = _gather(entries or [], control)
        problem = None
        if dist.get_rank() == 0:
            _, problem = _try(lambda: _publish(engine, paths, folder, owner, position, gathered))
        failed = _first_problem(problem, control)
    if failed is None:
        manifest = store.read_manifest(folder)
        _, problem = _try(lambda: _verify(folder, manifest, advance))
        failed = _first_problem(problem, control)
    if failed is None:
        _settle(paths, folder, owner, control)
    else:
        _discard(folder, control)
    return failed


def _write(engine: Engine, folder: Path, advance: Callable[[], None]) -> list[ManifestEntry]:
    rank, world = dist.get_rank(), dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for fragment in fragments(engine):
        kinds = {"master": fragment.master(), **moments(engine, fragment)}
        for kind, tensor in kinds.items():
            tensors[f"{fragment.name}@{fragment.offset}|{kind}"] = tensor
    weights = folder / f"rank-{rank:05d}-of-{world:05d}.safetensors"
    partial = weights.with_suffix(".tmp")
    metadata = {"adamStep": str(adam_step(engine))}
    digests = {weights: tensor_file.write(partial, tensors, metadata, advance)}
    partial.rename(weights)
    random = folder / f"rng-{rank:05d}.json"
    write_atomic(random, json.dumps(_random_state()))
    digests[random] = digest.of_file(random)
    sync_folder(folder)
    return [
        ManifestEntry(path=path.name, size_bytes=path.stat().st_size, xxh3_128=found)
        for path, found in digests.items()
    ]


def _settle(paths: RunPaths, folder: Path, owner: Owner, control: Any) -> None:
    """Mark the checkpoint as verified; without the mark (disk full) it is no less whole."""

    def mark() -> None:
        fence.check(paths, owner.epoch, owner.attempt)
        store.mark_verified(folder)

    problem = _try(mark)[1] if dist.get_rank() == 0 else None
    unmarked = _first_problem(problem, control)
    if unmarked is not None:
        _log.error("checkpoint %s could not be marked as verified (%s)", folder.name, unmarked)


def _discard(folder: Path, control: Any) -> None:
    """Give the space back: each rank removes what it wrote of a checkpoint that will never be."""
    rank = dist.get_rank()
    with contextlib.suppress(OSError):
        if rank == 0:  # first of all: what is half gone must not look whole
            (folder / store.MANIFEST).unlink(missing_ok=True)
    dist.barrier(control)
    for file in [*folder.glob(f"rank-{rank:05d}-of-*"), *folder.glob(f"rng-{rank:05d}.json")]:
        with contextlib.suppress(OSError):
            file.unlink()
    dist.barrier(control)
    with contextlib.suppress(OSError):
        if rank == 0:
            folder.rmdir()


def _random_state() -> dict[str, str]:
    def text(state: torch.Tensor) -> str:
        return base64.b64encode(state.numpy().tobytes()).decode()

    states = {"cpu": text(torch.get_rng_state())}
    if torch.cuda.is_available():
        states["cuda"] = text(torch.cuda.get_rng_state().cpu())
    return states


def _publish(
    engine: Engine,
    paths: RunPaths,
    folder: Path,
    owner: Owner,
    position: Position,
    entries: list[ManifestEntry],
) -> None:
    fence.check(paths, owner.epoch, owner.attempt)
    manifest = Manifest(
        step=position.step,
        rows_consumed=position.rows_consumed,
        tokens_seen=position.tokens_seen,
        skipped_steps=position.skipped,
        fence_epoch=owner.epoch,
        attempt=owner.attempt,
        job_uid=owner.job_uid,
        run_digest=owner.run_digest,
        world_size=dist.get_world_size(),
        zero_stage=engine.stage,
        creation_time=datetime.now(UTC),
        validation_loss=position.validation_loss,
        files=sorted(entries, key=lambda entry: entry.path),
    )
    write_atomic(folder / store.MANIFEST, manifest.to_json())


def _verify(folder: Path, manifest: Manifest | None, advance: Callable[[], None]) -> None:
    """Each rank reads back the files of the next one: another node's, where there is one."""
    deadline = time.monotonic() + 30
    while manifest is None:  # a shared file system may show it late to other nodes
        if time.monotonic() > deadline:
            raise OSError(f"{folder.name}: the manifest did not appear")
        time.sleep(0.2)
        manifest = store.read_manifest(folder)
    world = dist.get_world_size()
    turn = (dist.get_rank() + 1) % world
    mine = manifest.replace(files=[f for f in manifest.files if _rank_of(f.path) == turn])
    damaged = store.damaged_file(folder, mine, advance)
    if damaged:
        raise OSError(f"{folder.name}/{damaged} does not read back as it was written")


def _rank_of(name: str) -> int:
    return int(name.split("-")[1].split(".")[0])


def _try(work: Any) -> tuple[Any, BaseException | None]:
    """Disk full or a storage error is a result that all ranks must hear of, not an exception."""
    try:
        return work(), None
    except (OSError, RuntimeError, TrainerError) as error:
        return None, error


def _first_problem(problem: BaseException | None, control: Any) -> str | None:
    """What failed on any rank; being fenced ends this process on every rank."""
    fenced = problem if isinstance(problem, TrainerError) else None
    text = None if problem is None else str(problem)
    heard: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(heard, (text, fenced and int(fenced.code)), group=control)
    for rank, (message, code) in enumerate(heard):
        if code is not None:
            raise TrainerError(ExitCode(code), message)
        if message is not None:
            return f"rank {rank}: {message}"
    return None


def _gather(entries: list[ManifestEntry], control: Any) -> list[ManifestEntry]:
    heard: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(heard, [entry.to_dict() for entry in entries], group=control)
    return [ManifestEntry.model_validate(entry) for part in heard for entry in part]
