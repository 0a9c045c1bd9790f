"""Writing one checkpoint: what each rank does in the phases of a save, without collectives."""

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
from finetune_trainer.run_dir import digest, fence, tensor_file
from finetune_trainer.run_dir.files import sync_folder, write_atomic
from finetune_trainer.run_dir.paths import RunPaths

_APPEARANCE = 60.0  # s; shared file systems show other nodes' files late


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


@dataclass(frozen=True)
class Share:
    """This rank's part of a checkpoint, as it is to be written."""

    rank: int
    world: int
    zero_stage: int
    tensors: dict[str, torch.Tensor]
    adam_step: int
    random: dict[str, str]


def write(folder: Path, share: Share, advance: Callable[[], None]) -> None:
    """This rank's files; the list of them last: it says that they are whole.

    `advance` is called as work gets done: a save of hundreds of gigabytes is no hang.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{_stem(share.rank, share.world)}.safetensors"
    partial = weights.with_suffix(".tmp")
    metadata = {"adamStep": str(share.adam_step)}
    digests = {weights: tensor_file.write(partial, share.tensors, metadata, advance)}
    partial.rename(weights)
    random = folder / f"rng-{share.rank:05d}.json"
    write_atomic(random, json.dumps(share.random))
    digests[random] = digest.of_file(random)
    entries = [
        ManifestEntry(path=path.name, size_bytes=path.stat().st_size, xxh3_128=found)
        for path, found in digests.items()
    ]
    write_atomic(_list(folder, share.rank, share.world), RankFile(files=entries).to_json())


def publish(
    folder: Path, paths: RunPaths, owner: Owner, position: Position, share: Share, seconds: float
) -> Manifest:
    """Rank 0, when every rank has written: the checkpoint exists from here on.

    TrainerError 79 when a newer attempt owns the storage; `seconds`: how long writing took.
    """
    entries = []
    for rank in range(share.world):
        file = _list(folder, rank, share.world)
        _wait_for(file)
        entries += RankFile.model_validate_json(file.read_text()).files
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
        world_size=share.world,
        zero_stage=share.zero_stage,
        creation_time=datetime.now(UTC),
        validation_loss=position.validation_loss,
        write_seconds=round(seconds, 3),
        files=sorted(entries, key=lambda entry: entry.path),
    )
    write_atomic(folder / store.MANIFEST, manifest.to_json())
    return manifest


def verify(folder: Path, rank: int, advance: Callable[[], None]) -> None:
    """Read back, past the page cache, the files of a rank; OSError when they are not as they were
    written."""
    _wait_for(folder / store.MANIFEST)
    manifest = store.read_manifest(folder)
    if manifest is None:
        raise OSError(f"{folder.name}: the manifest, or a file that it names, is damaged")
    mine = manifest.replace(files=[f for f in manifest.files if _rank_of(f.path) == rank])
    damaged = store.damaged_file(folder, mine, advance)
    if damaged:
        raise OSError(f"{folder.name}/{damaged} does not read back as it was written")


def withdraw(folder: Path) -> None:
    """Remove the manifest: the checkpoint does not exist any more."""
    with contextlib.suppress(OSError):
        (folder / store.MANIFEST).unlink()


def discard(folder: Path, rank: int) -> None:
    """Remove this rank's files of a checkpoint that is not to be."""
    for name in (f"rank-{rank:05d}-of-*", f"rng-{rank:05d}.json"):
        for file in folder.glob(name):
            with contextlib.suppress(OSError):
                file.unlink()


def random_state() -> dict[str, str]:
    """States of this rank's generators."""

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
    deadline = time.monotonic() + _APPEARANCE
    while not file.exists():
        if time.monotonic() > deadline:
            raise OSError(f"{file.parent.name}/{file.name} did not appear")
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            sync_folder(file.parent)  # drops what NFS remembers of a folder
