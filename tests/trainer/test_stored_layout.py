"""Where parameters lie in the files of a model, compared with what transformers writes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from finetune_trainer.model.stored_layout import (
    StoredLayout,
    UnknownLayoutError,
    stored_buffers,
    stored_layout,
)
from tests.trainer.test_architectures import tiny

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "glm4_moe": {
        "n_routed_experts": 4,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
        "pad_token_id": None,
    },
    "gpt_oss": {"num_local_experts": 3},
    "gemma4_text": {"vocab_size_per_layer_input": 64, "global_head_dim": 16},
}


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("kind", "settings"), MODELS.items(), ids=MODELS.keys())
def test_the_layout_is_that_of_the_files(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny(kind, **settings).config()
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    layout = stored_layout(on_meta(config))
    assert layout.tensors.keys() == written.keys()
    values = dict(model.named_parameters()) | stored_buffers(model)
    for name, tensor in written.items():
        stored = layout.tensors[name]
        flat = values[stored.source].detach().flatten()
        part = flat[stored.offset : stored.offset + tensor.numel()]
        assert torch.equal(part.reshape(stored.shape), tensor), name
    for name, value in values.items():
        begin, end = value.numel() // 3, value.numel()
        pieces = [
            written[stored].flatten()[low:high]
            for stored, low, high in layout.pieces(name, begin, end)
        ]
        assert torch.equal(torch.cat(pieces), value.detach().flatten()[begin:end]), name


def test_files_that_hold_the_parameters_as_they_are_keep_their_names() -> None:
    model = on_meta(tiny("mixtral", num_local_experts=3).config())
    names = [name for name, _ in model.named_parameters()]
    assert stored_layout(model, names).tensors.keys() == set(names)
    assert stored_layout(model, names[1:]).tensors.keys() != set(names)


def test_a_tensor_that_is_computed_from_parameters_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def double(_: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: 2 * tensor for name, tensor in tensors.items()}

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", double)
    with pytest.raises(UnknownLayoutError, match=r"hold .*, which is not a part of one parameter"):
        stored_layout(on_meta(tiny("llama").config()))


def test_a_parameter_that_is_stored_in_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor[: len(tensor) // 2] for name, tensor in tensors.items()}

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", half)
    with pytest.raises(UnknownLayoutError, match="hold only a part of "):
        stored_layout(on_meta(tiny("llama").config()))


def test_an_unknown_parameter_is_not_covered() -> None:
    assert not StoredLayout({}).covers("x", 1)
