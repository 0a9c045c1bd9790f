"""What a model saves for the backward pass, measured without its weights."""

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from finetune_trainer.model import attention, memory_facts
from hack import plan_table

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
TOKENS = 128


def saved_on_cpu(config: LlamaConfig) -> int:
    """Return what a forward pass with values saves, parameters and embedding left out."""
    attention.register()
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage
        return tensor

    row = torch.arange(TOKENS)[None]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(
            input_ids=row,
            position_ids=row,
            use_cache=False,
            cu_seq_lens_q=torch.tensor([0, TOKENS], dtype=torch.int32),
            max_length_q=TOKENS,
        )
    return sum(storage.nbytes() for storage in saved.values())


def test_the_measured_bytes_are_those_of_a_real_forward_pass() -> None:
    config = LlamaConfig(num_hidden_layers=4, **SIZES)
    facts = memory_facts.measure(config, TOKENS, torch.float32)
    joined = 4 * TOKENS * 256 * 4  # documents are joined once more in each layer, on CPU only
    expected = saved_on_cpu(config) - joined
    assert facts.layers * facts.layer_bytes == pytest.approx(expected, rel=0.005)


ARCHITECTURES = {
    "Llama 3.1 8B": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
    ),
    "Mixtral 8x7B": MixtralConfig(
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32_000,
        num_local_experts=8,
        num_experts_per_tok=2,
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_facts_of_the_documented_plans_are_measured(name: str) -> None:
    measured = memory_facts.measure(ARCHITECTURES[name], plan_table.TOKENS, torch.bfloat16)
    assert measured == plan_table.MODELS[name][1]


def test_facts_of_a_dense_model() -> None:
    facts = memory_facts.measure(LlamaConfig(num_hidden_layers=4, **SIZES), TOKENS, torch.bfloat16)
    matrices = 256 * (256 + 128 + 128 + 256) + 3 * 256 * 512
    assert (facts.layers, facts.hidden, facts.vocabulary) == (4, 256, 1000)
    assert facts.active_parameters == 4 * matrices
    assert facts.layer_parameters == matrices + 2 * 256
    assert facts.largest_parameter == 1000 * 256
    assert facts.attention_width == 4 * 256


def test_twice_the_tokens_save_twice_the_bytes() -> None:
    config = LlamaConfig(num_hidden_layers=2, **SIZES)
    one, two = (
        memory_facts.measure(config, tokens, torch.bfloat16).layer_bytes
        for tokens in (TOKENS, 2 * TOKENS)
    )
    assert two == pytest.approx(2 * one, rel=0.001)


def test_a_token_is_multiplied_only_with_the_experts_that_it_is_routed_to() -> None:
    config = MixtralConfig(num_hidden_layers=2, num_local_experts=8, num_experts_per_tok=2, **SIZES)
    facts = memory_facts.measure(config, TOKENS, torch.bfloat16)
    attention_and_router = 256 * (256 + 128 + 128 + 256) + 8 * 256
    assert facts.active_parameters == 2 * (attention_and_router + 2 * 3 * 256 * 512)
    assert facts.layer_parameters > 8 * 3 * 256 * 512


def test_experts_are_found_whatever_the_configuration_calls_them() -> None:
    """Gemma 4 has top_k_experts, where others have num_experts_per_tok."""
    from transformers import Gemma4TextConfig

    def active(experts: int) -> int:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        mixture = {"num_experts": experts, "top_k_experts": 2, "moe_intermediate_size": 64}
        config = Gemma4TextConfig(enable_moe_block=True, **sizes, **heads, **mixture)
        return memory_facts.measure(config, TOKENS, torch.bfloat16).active_parameters

    router = 6 * 64  # weights for each expert
    assert active(16) == active(8) + 8 * router


def test_a_model_that_cannot_run_without_values_has_no_facts(caplog) -> None:
    class Broken(LlamaConfig):
        model_type = "broken"

    assert memory_facts.measure(Broken(), TOKENS, torch.float32) is None
    assert "could not be measured" in caplog.text
