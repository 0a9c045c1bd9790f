"""Reads the results of a job from its storage."""

from pathlib import Path
from typing import Any

import torch

from finetune_api.run import RunConfig
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.fragments import KINDS
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer.gang import Job


def paths_of(job: Job) -> RunPaths:
    """Return the paths of a job as the trainer uses them."""
    config = job.config | {"role": "prepare", "mounts": {"w": str(job.claim)}}
    return RunPaths.of(RunConfig.model_validate(config))


def masters(job: Job, kind: str = "master") -> dict[str, torch.Tensor]:
    """Return the flattened fp32 master weights, or a moment, of the newest checkpoint."""
    newest = store.newest_valid(paths_of(job), job.config["runDigest"])
    assert newest is not None
    reader = CheckpointReader(*newest)
    parameters = load(job.claim / "model").named_parameters()
    return {name: reader.read(name, kind, 0, p.numel()) for name, p in parameters}


def load(folder: Path, **options: Any) -> Any:
    """Load a model with transformers. Fails for missing, unexpected or mismatched weights."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    wrong = {kind: keys for kind, keys in info.items() if keys}
    assert not wrong
    return model


def final(job: Job) -> dict[str, torch.Tensor]:
    """Return the exported weights."""
    return {name: p.detach() for name, p in load(job.storage / "final").named_parameters()}


def assert_same_run(job: Job, other: Job) -> None:
    """Compare master weights, both moments and the exported file bit for bit."""
    for kind in KINDS:
        mine, theirs = masters(job, kind), masters(other, kind)
        assert mine.keys() == theirs.keys()
        different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
        assert not different, kind
    files = [run.storage / "final/model.safetensors" for run in (job, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
