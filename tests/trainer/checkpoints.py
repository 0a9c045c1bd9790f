"""Writes checkpoints of any number of ranks, without DeepSpeed."""

from datetime import UTC, datetime
from pathlib import Path

import torch
from safetensors.torch import save_file

from finetune_api.storage import Manifest, ManifestEntry
from finetune_trainer.checkpoint import store
from finetune_trainer.run_dir.files import file_digest
from finetune_trainer.run_dir.paths import RunPaths

DIGEST = "run-digest"


def make_paths(folder: Path) -> RunPaths:
    """Return the paths of a run whose storage is below a folder."""
    storage = folder / "run"
    storage.mkdir(parents=True, exist_ok=True)
    return RunPaths(folder / "model", storage, storage / "cache", "pvc://w/run")


def write_checkpoint(
    paths: RunPaths,
    step: int,
    *,
    epoch: int = 1,
    slices: list[dict[str, torch.Tensor]] | None = None,
    verified: bool = True,
    run_digest: str = DIGEST,
) -> Path:
    """Publish a checkpoint of `slices`: for each rank, `parameter@offset|kind` -> tensor."""
    folder = paths.checkpoint(step, epoch)
    folder.mkdir(parents=True)
    slices = slices or [{"w@0|master": torch.arange(8.0) + step}]
    entries = []
    for rank, tensors in enumerate(slices):
        file = folder / f"rank-{rank:05d}-of-{len(slices):05d}.safetensors"
        save_file(tensors, str(file), {"adamStep": str(step)})
        entries.append(
            ManifestEntry(
                path=file.name, size_bytes=file.stat().st_size, xxh3_128=file_digest(file)
            )
        )
    manifest = Manifest(
        step=step,
        rows_consumed=4 * step,
        fence_epoch=epoch,
        attempt=epoch,
        job_uid="uid-1",
        run_digest=run_digest,
        world_size=len(slices),
        zero_stage=2,
        creation_time=datetime.now(UTC),
        files=entries,
    )
    (folder / store.MANIFEST).write_text(manifest.to_json())
    if verified:
        store.mark_verified(folder)
    return folder


def flip_a_byte(file: Path) -> None:
    """Damage a file without changing its size."""
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
