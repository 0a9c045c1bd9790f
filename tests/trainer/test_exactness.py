"""The mathematics: packed rows equal separate documents, the fused head equals the plain one."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from finetune_trainer import attention, batch
from finetune_trainer.data.rows import Row
from finetune_trainer.head import linear_cross_entropy
from finetune_trainer.lm import LanguageModel

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES)),
    "mistral": (MistralForCausalLM, MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=8)),
}
CPU = torch.device("cpu")


def make_row(*lengths: int, seed: int = 0) -> Row:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 97, sum(lengths)).astype(np.uint32)
    trained = generator.random(sum(lengths)) < 0.6
    trained[np.cumsum([0, *lengths[:-1]])] = False
    return Row(tokens=tokens, trained=trained, segments=np.array(lengths))


def documents(row: Row) -> list[Row]:
    bounds = np.cumsum([0, *row.segments])
    return [
        replace(row, tokens=row.tokens[a:b], trained=row.trained[a:b], segments=np.array([b - a]))
        for a, b in itertools.pairwise(bounds)
    ]


def reference(model, row: Row) -> torch.Tensor:
    """Plain transformers on each document by itself, plain cross-entropy."""
    total = torch.zeros(())
    for document in documents(row):
        tokens = torch.from_numpy(document.tokens.astype(np.int64))[None]
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        wanted = torch.from_numpy(document.trained[1:].astype(bool))
        if wanted.any():
            total = total + cross_entropy(logits[wanted], tokens[0, 1:][wanted], reduction="sum")
    return total


def packed_model(family: str) -> LanguageModel:
    """As the trainer builds it."""
    attention.register()
    build, config = FAMILIES[family]
    config = copy.deepcopy(config)
    config._attn_implementation = attention.NAME
    return LanguageModel(build(config).float())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_equals_its_documents(family: str):
    build, config = FAMILIES[family]
    torch.manual_seed(0)
    plain = build(copy.deepcopy(config)).float()
    packed = packed_model(family)
    packed.model.load_state_dict(plain.state_dict())
    row = make_row(7, 1, 19, 5)
    loss, expected = packed(batch.make([row], CPU)), reference(plain, row)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-6)
    loss.backward()
    expected.backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in packed.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-5)


def test_two_rows_in_one_micro_batch_are_the_sum_of_both():
    torch.manual_seed(0)
    model = packed_model("llama")
    rows = [make_row(9, 4, seed=1), make_row(3, 12, seed=2)]
    together = model(batch.make(rows, CPU))
    apart = sum(model(batch.make([row], CPU)) for row in rows)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_head_equals_linear_and_cross_entropy(dtype, monkeypatch):
    monkeypatch.setattr("finetune_trainer.head._CHUNK_ELEMENTS", 3 * 31)  # many chunks
    torch.manual_seed(0)
    hidden = torch.randn(10, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(31, 8, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 31, (10,))
    fused = linear_cross_entropy(hidden, weight, targets)
    (fused * 0.3).backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    plain = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (plain * 0.3).backward()
    torch.testing.assert_close(fused, plain.float())
    torch.testing.assert_close(ours[0], hidden.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1], weight.grad, atol=1e-5, rtol=1e-5)


def test_an_evaluation_makes_no_gradients():
    weight = torch.randn(31, 8, requires_grad=True)
    with torch.no_grad():
        loss = linear_cross_entropy(torch.randn(4, 8), weight, torch.tensor([1, 2, 3, 4]))
    assert not loss.requires_grad


def test_no_target_crosses_a_document():
    row = make_row(4, 3)
    made = batch.make([replace(row, trained=np.array([0, 1, 1, 1, 0, 1, 1], dtype=bool))], CPU)
    assert made.predict.tolist() == [0, 1, 2, 4, 5]
    assert made.targets.tolist() == row.tokens[[1, 2, 3, 5, 6]].tolist()
    assert made.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert made.bounds.tolist() == [0, 4, 7]
