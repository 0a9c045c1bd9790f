"""Weights of a model folder that are read in slices, for ZeRO-3."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model import loading
from finetune_trainer.model.stored_layout import Stored, StoredLayout, stored_buffers
from finetune_trainer.model.stored_weights import StoredWeights
from tests.trainer import gang, tiny

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make_model(tmp_path / "model")


def edit(folder: Path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Change or remove tensors of a model folder, and return what it holds."""
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return kept


@pytest.mark.parametrize("files", [1, 2], ids=["one-file", "several-files"])
def test_slices_of_all_files_are_read(folder: Path, files: int) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if files > 1:
        model.save_pretrained(folder, max_shard_size="100KB")
        (folder / "model.safetensors").unlink(missing_ok=True)
        assert len(list(folder.glob("*.safetensors"))) >= files
    stored = StoredWeights(folder)
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        assert torch.equal(stored.read(name, 5, len(flat) - 3), flat[5:-3])


@pytest.mark.parametrize(
    ("difference", "same"), [(None, True), (0.0, True), (0.5, False)], ids=["no-head", "", "other"]
)
def test_a_head_with_other_values_than_the_embedding_is_found(
    folder: Path, difference: float | None, *, same: bool
) -> None:
    if difference is not None:
        embedding = load_file(folder / "model.safetensors")[EMBEDDING].clone()
        embedding[-1, -1] += difference
        edit(folder, **{HEAD: embedding})
    assert StoredWeights(folder).head_equals_embedding() == same


def test_buffers_come_from_the_files_unless_they_are_computed(folder: Path) -> None:
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("computed", torch.ones(3), persistent=False)
    edit(folder, running_mean=torch.arange(3.0), running_var=torch.arange(3.0) + 1,
         num_batches_tracked=torch.tensor(7), computed=torch.zeros(3))  # fmt: skip
    buffers = stored_buffers(module)
    layout = StoredLayout({key: Stored(key, 0, tuple(b.shape)) for key, b in buffers.items()})
    StoredWeights(folder).fill(buffers, layout)
    assert module.running_mean is not None
    assert module.running_mean.tolist() == [0, 1, 2]
    assert module.get_buffer("running_var").tolist() == [1, 2, 3]
    assert module.get_buffer("num_batches_tracked") == 7
    assert module.get_buffer("computed").tolist() == [1, 1, 1]


def refusal(folder: Path) -> str:
    """Load a folder for ZeRO-3, and return why the configuration is refused."""
    values = gang.make_job(folder).config | {"role": "prepare", "mounts": {"w": "/"}}
    training = gang.RunConfig.model_validate(values).training
    with pytest.raises(TrainerError) as caught:
        loading.load(folder, training, gang.make_plan(zeroStage=3), lambda: None)
    assert caught.value.code == ExitCode.BAD_CONFIGURATION
    return str(caught.value)


def test_a_weight_that_is_absent_is_named_before_anything_is_partitioned(folder: Path) -> None:
    edit(folder, **{"model.norm.weight": None})
    assert "model.norm.weight is absent" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "usable"),
    [
        ("zero_hpz_partition_size", 8, False),
        ("zero_hpz_partition_size", 1, True),
        ("zero_quantized_weights", True, False),
        ("zero_quantized_weights", False, True),
        ("mics_shard_size", 4, False),
        ("mics_shard_size", -1, True),
        ("stage3_max_live_parameters", 4, True),
    ],
)
def test_keys_that_need_more_than_a_slice_are_found(key: str, value: Any, *, usable: bool) -> None:
    found = loading.unusable_keys({"stage": 3, key: value})
    assert found == ([] if usable else [f"zero_optimization.{key}"])


def test_keys_that_need_more_than_a_slice_are_refused_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}
    monkeypatch.setattr(loading, "configuration", lambda *_: config)
    assert "zero_optimization.zero_hpz_partition_size cannot be used" in refusal(folder)
