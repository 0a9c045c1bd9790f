"""Which architectures the trainer computes exactly, and what it says of the others."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune_local.cache import TREE
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model import exactness, small_copy
from tests.trainer.families import FAMILIES, Family, page

PAGE = TREE / "docs/reference/models.md"
SAMPLE = ("Llama 2, Yi, SmolLM2", "Gemma 2")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}

WITHOUT_HEAD_SIZE = {
    key: value for key, value in SIZES.items() if key not in ("head_dim", "num_key_value_heads")
}


def rows_of_page() -> list[str]:
    return re.findall(r"^\| .*`.* \|$", PAGE.read_text(), re.MULTILINE)


def every_family() -> list[Any]:
    return [
        pytest.param(one, row, marks=[] if one.models in SAMPLE else pytest.mark.slow)
        for one, row in zip(FAMILIES, rows_of_page(), strict=True)
    ]


def family_id(value: Any) -> str:
    return value.models if isinstance(value, Family) else ""


@pytest.mark.parametrize(("family", "row"), every_family(), ids=family_id)
def test_the_page_of_models_says_what_the_check_finds(family: Family, row: str) -> None:
    assert family.row() == row, "run `make families`, and read the difference"


def test_the_page_of_models_is_up_to_date_and_has_thirty_families() -> None:
    assert PAGE.read_text() == page(rows_of_page()), "run `make families`"
    assert len({family.kind for family in FAMILIES}) >= 30


def tiny(kind: str, **settings: Any) -> Family:
    return Family("tiny", kind, SIZES | settings)


def examine(config: Any, longest: int = 128) -> exactness.Finding:
    return exactness.examine(config, longest, lambda: None)


def difference(config: Any, longest: int = 128) -> str | None:
    return examine(config, longest).problem or None


DIFFER = {
    "dynamic RoPE": (
        tiny("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        r"its RoPE \(dynamic\) depends on the length of the input, and rows have up to 128 tokens",
    ),
    "several models": (
        Family("", "gemma3"),
        r"it is made of several models \(text_config, vision_config\)",
    ),
    "a state-space model": (
        Family("", "mamba2"),
        "it has no model.embed_tokens.weight, model.layers and lm_head.weight|a small copy",
    ),
}


@pytest.mark.parametrize(("family", "expected"), DIFFER.values(), ids=DIFFER.keys())
def test_what_differs_is_named(family: Family, expected: str) -> None:
    found = difference(family.config()) or "exact"
    assert re.match(expected, found), found


EXACT = {
    "a window": tiny("mistral", sliding_window=100),
    "a window in some layers only": tiny(
        "qwen2",
        num_hidden_layers=6,
        use_sliding_window=True,
        sliding_window=100,
        max_window_layers=5,
    ),
    "scaled logits": tiny("cohere", logit_scale=0.0625),
    "scaled embeddings, residuals, attention and logits": tiny(
        "granite",
        embedding_multiplier=12.0,
        attention_multiplier=0.01,
        residual_multiplier=0.22,
        logits_scaling=16.0,
    ),
    "logits and attention with soft-caps": tiny("gemma2"),
    "experts that are stored one by one": tiny("mixtral", sliding_window=None),
    "a loss of routers": tiny("mixtral", router_aux_loss_coef=0.5, sliding_window=None),
    "attention with sinks": tiny("gpt_oss", num_local_experts=4),
    "values shorter than keys": Family(
        "tiny",
        "deepseek_v3",
        WITHOUT_HEAD_SIZE | {"num_key_value_heads": 4, "first_k_dense_replace": 2},
    ),
    "a head with a bias": Family("tiny", "phi", WITHOUT_HEAD_SIZE),
    "biases": tiny("llama", attention_bias=True, mlp_bias=True),
    "a tied head": tiny("qwen3", tie_word_embeddings=True),
    "RoPE on a part of each head": tiny("glm4", partial_rotary_factor=0.5, pad_token_id=None),
    "layers with and without RoPE": tiny("smollm3", num_hidden_layers=8, pad_token_id=None),
    "attention that depends on the position": tiny(
        "ministral3", num_hidden_layers=2, sliding_window=None
    ),
}


@pytest.mark.parametrize("family", EXACT.values(), ids=EXACT.keys())
def test_what_is_exact_is_accepted(family: Family) -> None:
    assert difference(family.config()) is None


def longrope(original: int) -> Family:
    return tiny(
        "phi3",
        pad_token_id=None,
        original_max_position_embeddings=original,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": original,
        },
    )


def test_longrope_is_exact_for_rows_that_it_does_not_scale() -> None:
    assert difference(longrope(128).config()) is None
    assert examine(longrope(127).config()) == exactness.Finding(
        "Document",
        "its RoPE (longrope) depends on the length of the input above 127 tokens, and rows have up "
        "to 128 tokens",
    )


STATE = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16}
ALONE = {
    "short convolutions": (
        tiny("lfm2", layer_types=["conv", "full_attention"]),
        "logits of packed rows differ from those of separate documents by",
    ),
    "a state beside attention": (
        tiny("falcon_h1", **STATE, mamba_d_ssm=64, lm_head_multiplier=0.04),
        "logits of packed rows differ from those of separate documents by",
    ),
    "a state instead of attention": (
        tiny(
            "granitemoehybrid",
            **STATE,
            layer_types=["mamba", "attention"],
            position_embedding_type="nope",
            num_local_experts=0,
            logits_scaling=8.0,
        ),
        "logits of packed rows differ from those of separate documents by",
    ),
    "gated delta rules": (
        tiny("qwen3_5_text", layer_types=["linear_attention", "full_attention"]),
        "a small copy of it cannot be computed as packed rows",
    ),
    "layers that pass no bounds on": (
        tiny("stablelm"),
        "its layers do not pass the bounds of documents on to their attention",
    ),
}


@pytest.mark.parametrize(("family", "packed"), ALONE.values(), ids=ALONE.keys())
def test_what_is_exact_one_document_at_a_time_is_found(family: Family, packed: str) -> None:
    found = examine(family.config())
    assert found.forward_pass == "Document", found
    assert found.problem.startswith(packed)


def test_a_small_copy_keeps_every_kind_of_layer() -> None:
    config = tiny(
        "qwen2", num_hidden_layers=9, use_sliding_window=True, max_window_layers=7
    ).config()
    model = exactness._empty_model(config)
    layers = small_copy.layers_needed(model)
    assert layers == 8
    assert small_copy.small_copy(config, layers).layer_types[-1] == "sliding_attention"
    other = exactness._empty_model(tiny("qwen2").config())
    with pytest.raises(small_copy.UnknownPatternError, match="other kinds of layers"):
        small_copy.check_same_kinds(model, other)


REFUSED = {
    "another class than transformers builds": (
        {"architectures": ["OtherForCausalLM"]},
        r"the architecture OtherForCausalLM is not supported with this config.json: config.json "
        "names OtherForCausalLM, and transformers builds LlamaForCausalLM for model_type llama;",
    ),
    "no class": (
        {"architectures": None},
        r"the architecture \(none\) is not supported with this config.json: config.json names "
        "None",
    ),
    "code of the repository": (
        {"model_type": "secret", "auto_map": {"AutoConfig": "configuration_secret.SecretConfig"}},
        r"transformers cannot build this model as a causal language model \(.*Models that need "
        r"code from their repository \(auto_map in config.json\) are not supported",
    ),
    "noise in a router": (
        {"router_jitter_noise": 0.1},
        "router_jitter_noise 0.1 is not supported; set it to 0.0 in config.json",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_folder_is_refused_by_its_config_alone(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = tiny("llama").config().to_dict() | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(TrainerError) as caught:
        exactness.check_model(tmp_path, "x", 128, lambda: None)
    assert caught.value.code == 64
    assert re.match(f"x: {message}", caught.value.message, re.DOTALL), caught.value.message
