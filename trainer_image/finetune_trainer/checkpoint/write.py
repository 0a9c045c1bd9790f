"""Saving: every rank writes its fragments, rank 0 publishes when all have."""

import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import Manifest, ManifestEntry
from finetune_trainer import fence
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.fragments import adam_step, fragments, moments
from finetune_trainer.data import digest
from finetune_trainer.engine import Engine
from finetune_trainer.errors import TrainerError
from finetune_trainer.files import sync_folder, write_atomic
from finetune_trainer.paths import RunPaths


@dataclass(frozen=True)
class Position:
    """Where a run stands when it is saved."""

    step: int
    rows_consumed: int
    tokens_seen: int
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
    if failed is None and dist.get_rank() == 0:
        store.mark_verified(folder)
        fence.check(paths, owner.epoch, owner.attempt)
    dist.barrier(control)
    return failed


def _write(engine: Engine, folder: Path, advance: Callable[[], None]) -> list[ManifestEntry]:
    rank, world = dist.get_rank(), dist.get_world_size()
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for fragment in fragments(engine):
        kinds = {"master": fragment.master(), **moments(engine, fragment)}
        for kind, tensor in kinds.items():
            tensors[f"{fragment.name}@{fragment.offset}|{kind}"] = tensor.detach().cpu().clone()
        advance()
    weights = folder / f"rank-{rank:05d}-of-{world:05d}.safetensors"
    partial = weights.with_suffix(".tmp")
    save_file(tensors, str(partial), {"adamStep": str(adam_step(engine))})
    _finish(partial, weights)
    random = folder / f"rng-{rank:05d}.json"
    write_atomic(random, json.dumps(_random_state()))
    for path in (weights, random):
        path.chmod(0o644)
    sync_folder(folder)
    return [
        ManifestEntry(path=p.name, size_bytes=p.stat().st_size, xxh3_128=digest.of_file(p, advance))
        for p in (weights, random)
    ]


def _finish(partial: Path, path: Path) -> None:
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.rename(path)


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
