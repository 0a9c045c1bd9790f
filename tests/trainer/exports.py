"""Runs that have a checkpoint to export, made without training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from finetune_api.progress import DataSummary, SourceSummary
from finetune_api.run import RunConfig
from finetune_trainer.export import model_export
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import weights
from tests.trainer.checkpoints import DIGEST, write_checkpoint
from tests.trainer.gang import make_plan
from tests.trainer.silent import SilentReporter

Configure = Callable[..., RunConfig]
Masters = dict[str, torch.Tensor]
STEPS = 8  # of the finished run


def make_run(configured: Configure, **changes: Any) -> RunConfig:
    """Return a worker's configuration. Its run has prepared data and holds the fence."""
    plan = make_plan().to_dict()
    values = {"runDigest": DIGEST, "preparedDigest": "data", "plan": plan, "attempt": 1}
    made = configured(**(values | changes))
    paths = RunPaths.of(made)
    source = SourceSummary(source="pvc://w/data/train.jsonl", rows=20, examples=60)
    summary = DataSummary(
        examples=60,
        rows=20,
        tokens=2000,
        trained_tokens=900,
        packing_efficiency=0.9,
        sources=[source],
    )
    paths.prepared("data").mkdir(parents=True)
    (paths.prepared("data") / "card.json").write_text(summary.to_json())
    assert fence.claim(paths, made.job_uid, 1) == 1
    return made


def trained(config: RunConfig) -> Masters:
    """Return fp32 master weights that differ a little from the base model's parameters."""
    torch.manual_seed(1)
    return {
        name: parameter.detach().float() + 0.1 * torch.randn(parameter.shape)
        for name, parameter in weights.load(RunPaths.of(config).model).named_parameters()
    }


def save(config: RunConfig, masters: Masters, step: int = STEPS) -> None:
    """Write a checkpoint of two ranks, each with one half of every parameter."""
    slices: list[Masters] = [{}, {}]
    for name, master in masters.items():
        flat, half = master.flatten(), master.numel() // 2
        slices[0][f"{name}@0|master"] = flat[:half].clone()
        slices[1][f"{name}@{half}|master"] = flat[half:].clone()
    write_checkpoint(RunPaths.of(config), step, slices=slices)


def run(config: RunConfig, epoch: int = 1) -> RunPaths:
    """Export the run and check that no partial folder is left."""
    paths = RunPaths.of(config)
    output = model_export.run(config, paths, SilentReporter(), epoch, STEPS)
    assert output.verified
    assert not list(paths.storage.glob("final.*"))
    return paths


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def edit(file: Path, drop: tuple[str, ...] = (), **changes: Any) -> None:
    """Set and remove keys of a JSON file."""
    values = {k: v for k, v in read(file).items() if k not in drop} | changes
    file.write_text(json.dumps(values, indent=2))


def as_published_before_transformers_5(folder: Path) -> Path:
    """Rewrite a model folder as transformers 4 would, with scaled RoPE."""
    edit(
        folder / "config.json",
        ("rope_parameters", "dtype"),
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        torch_dtype="bfloat16",
        transformers_version="4.44.0",
    )
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(
        folder / "tokenizer_config.json",
        ("backend", "is_local", "local_files_only"),
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=template,
    )
    return folder
