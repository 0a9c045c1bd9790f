"""What each rank does in the phases of a save. Nothing here is a collective."""

import base64
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from finetune_api.storage import Manifest, ManifestEntry, RankFile
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.run_dir import tensor_file
from finetune_trainer.run_dir.files import file_digest, refresh, write_atomic

_VISIBILITY_SECONDS = 60.0  # shared file systems show the files of other nodes late


@dataclass(frozen=True)
class Position:
    """Where a run is when it is saved."""

    step: int
    rows_consumed: int
    tokens_seen: int
    skipped: int
    validation_loss: float | None


@dataclass(frozen=True)
class Shard:
    """One rank's part of a checkpoint, in memory."""

    rank: int
    world: int
    zero_stage: int
    tensors: dict[str, torch.Tensor]
    adam_step: int
    random: dict[str, str]


def write(folder: Path, shard: Shard, advance: Callable[[], None]) -> None:
    """Write this rank's files. The list of them comes last and shows that they are complete.

    `advance` is called for every piece of work, because saving hundreds of gigabytes must not look
    like a hang.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{_stem(shard.rank, shard.world)}.safetensors"
    partial = weights.with_suffix(".tmp")
    metadata = {"adamStep": str(shard.adam_step)}
    digests = {weights: tensor_file.write(partial, shard.tensors, metadata, advance)}
    partial.rename(weights)
    random = folder / f"rng-{shard.rank:05d}.json"
    write_atomic(random, json.dumps(shard.random))
    digests[random] = file_digest(random)
    entries = [
        ManifestEntry(path=path.name, size_bytes=path.stat().st_size, xxh3_128=found)
        for path, found in digests.items()
    ]
    write_atomic(_list(folder, shard.rank, shard.world), RankFile(files=entries).to_json())


def publish(
    folder: Path, storage: RunStorage, position: Position, shard: Shard, seconds: float
) -> Manifest:
    """Write the manifest, on rank 0, after every rank has written its files.

    `seconds` is how long writing took. Raises TrainerError (79) if a newer attempt owns the
    storage, and OSError if the files of a rank do not become visible.
    """
    entries = []
    for rank in range(shard.world):
        file = _list(folder, rank, shard.world)
        _wait_for(file)
        entries += RankFile.model_validate_json(file.read_text()).files
    storage.check_fence()
    manifest = Manifest(
        step=position.step,
        rows_consumed=position.rows_consumed,
        tokens_seen=position.tokens_seen,
        skipped_steps=position.skipped,
        fence_epoch=storage.fence_epoch,
        attempt=storage.attempt,
        job_uid=storage.job_uid,
        run_digest=storage.run_digest,
        world_size=shard.world,
        zero_stage=shard.zero_stage,
        creation_time=datetime.now(UTC),
        validation_loss=position.validation_loss,
        write_seconds=round(seconds, 3),
        files=sorted(entries, key=lambda entry: entry.path),
    )
    write_atomic(folder / store.MANIFEST, manifest.to_json())
    return manifest


def verify(folder: Path, rank: int, advance: Callable[[], None]) -> None:
    """Read back the files of a rank from the device. Raises OSError if they differ."""
    _wait_for(folder / store.MANIFEST)
    manifest = store.read_manifest(folder)
    if manifest is None:
        raise OSError(f"{folder.name}: the manifest, or a file that it names, is damaged")
    share = manifest.replace(files=[f for f in manifest.files if _rank_of(f.path) == rank])
    damaged = store.damaged_file(folder, share, advance)
    if damaged:
        raise OSError(f"{folder.name}/{damaged} does not read back as it was written")


def withdraw(folder: Path) -> None:
    """Remove the manifest, so that the checkpoint is no longer published."""
    with contextlib.suppress(OSError):
        (folder / store.MANIFEST).unlink()


def discard(folder: Path, rank: int) -> None:
    """Delete the files of this rank after a save failed."""
    for name in (f"rank-{rank:05d}-of-*", f"rng-{rank:05d}.json"):
        for file in folder.glob(name):
            with contextlib.suppress(OSError):
                file.unlink()


def random_state() -> dict[str, str]:
    """Return the states of this rank's random generators, in base64."""

    def text(state: torch.Tensor) -> str:
        return base64.b64encode(state.numpy().tobytes()).decode()

    states = {"cpu": text(torch.get_rng_state())}
    if torch.cuda.is_available():
        states["cuda"] = text(torch.cuda.get_rng_state().cpu())
    return states


def _stem(rank: int, world: int) -> str:
    return f"rank-{rank:05d}-of-{world:05d}"


def _list(folder: Path, rank: int, world: int) -> Path:
    return folder / f"{_stem(rank, world)}.json"


def _rank_of(name: str) -> int:
    return int(name.split("-")[1].split(".")[0])


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + _VISIBILITY_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise OSError(f"{file.parent.name}/{file.name} did not appear")
        time.sleep(0.1)
        refresh(file.parent)
