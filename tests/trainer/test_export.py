"""The finished model from checkpoint files, in process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.progress import DataSummary
from finetune_api.run import RunConfig
from finetune_trainer import export
from finetune_trainer.errors import TrainerError
from finetune_trainer.paths import RunPaths
from finetune_trainer.reporter import SilentReporter
from tests.trainer import weights
from tests.trainer.checkpoints import DIGEST, write_checkpoint

Configure = Callable[..., RunConfig]


@pytest.fixture
def config(configured: Configure) -> RunConfig:
    """A worker's configuration whose run has one checkpoint of two ranks."""
    made = configured(runDigest=DIGEST, preparedDigest="data")
    paths = RunPaths.of(made)
    summary = DataSummary(examples=1, rows=1, tokens=1, trained_tokens=1, packing_efficiency=1)
    paths.prepared("data").mkdir(parents=True)
    (paths.prepared("data") / "card.json").write_text(summary.to_json())
    torch.manual_seed(1)
    slices: list[dict[str, torch.Tensor]] = [{}, {}]
    for name, parameter in weights.load(paths.model).named_parameters():
        flat = parameter.detach().flatten().float() + 0.1 * torch.randn(parameter.numel())
        half = len(flat) // 2
        slices[0][f"{name}@0|master"] = flat[:half].clone()
        slices[1][f"{name}@{half}|master"] = flat[half:].clone()
    write_checkpoint(paths, 8, slices=slices)
    return made


def run(config: RunConfig, check: Callable[[], None] = lambda: None) -> RunPaths:
    paths = RunPaths.of(config)
    output = export.run(config, paths, SilentReporter(), check)
    assert output.verified
    return paths


def test_a_tied_head_that_is_stored_twice_is_not_exported_untrained(config: RunConfig) -> None:
    path = RunPaths.of(config).model / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, {"format": "pt"})
    model = weights.load(run(config).final)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_large_models_are_exported_in_shards(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights.load(run(config).final).state_dict()
    shutil.rmtree(RunPaths.of(config).final)
    monkeypatch.setattr(export, "_SHARD_BYTES", 60_000)
    final = run(config).final
    assert len(list(final.glob("model-*-of-*.safetensors"))) > 2
    sharded = weights.load(final).state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in whole.items())


def test_an_export_is_done_once(config: RunConfig) -> None:
    before = (run(config).final / "model.safetensors").stat().st_mtime_ns
    assert (run(config).final / "model.safetensors").stat().st_mtime_ns == before


def test_an_export_whose_weights_were_moved_away_is_done_again(config: RunConfig) -> None:
    (run(config).final / "model.safetensors").unlink()
    assert (run(config).final / "model.safetensors").is_file()


def test_an_export_of_another_run_is_replaced(config: RunConfig) -> None:
    final = run(config).final
    (final / "export.json").write_text(
        '{"jobUid": "x", "runDigest": "y", "step": 1, "sizeBytes": 1}'
    )
    (final / "left-over.bin").write_text("x")
    run(config)
    assert not (final / "left-over.bin").exists()


def test_a_fenced_attempt_publishes_nothing(config: RunConfig) -> None:
    def fenced() -> None:
        raise TrainerError(export.ExitCode.FENCED, "a newer attempt owns the storage")

    with pytest.raises(TrainerError):
        run(config, fenced)
    assert not RunPaths.of(config).final.exists()


def test_no_checkpoint_is_no_model(config: RunConfig) -> None:
    shutil.rmtree(RunPaths.of(config).checkpoints)
    with pytest.raises(TrainerError, match="pvc://w/runs/a: no valid checkpoint to export"):
        run(config)


def test_nothing_half_exported_is_left(config: RunConfig, tmp_path: Path) -> None:
    (RunPaths.of(config).storage / "final.tmp-1").mkdir()
    paths = run(config)
    assert not list(paths.storage.glob("final.tmp-*"))
