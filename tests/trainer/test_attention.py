"""Attention within documents: windows, soft-caps and sinks, compared with the plain formula."""

import importlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from finetune_trainer.model import document_attention, flash_attention
from finetune_trainer.model.attention import segments_attention
from finetune_trainer.model.scores import Scores

BOUNDS = [0, 7, 8, 19, 32]
HEADS, SIZE = 4, 8
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a window": {"window": 3},
    "a window of one block": {"window": 4},
    "a window longer than some documents": {"window": 9},
    "a soft-cap": {"softcap": 0.7},
    "sinks": {"sinks": True},
    "all of them": {"window": 5, "softcap": 2.0, "sinks": True},
}


def tensors(kv_heads: int, value_size: int = SIZE) -> list[torch.Tensor]:
    """Return query, key, value and sinks."""
    torch.manual_seed(3)
    tokens = BOUNDS[-1]
    shapes = (
        (1, HEADS, tokens, SIZE),
        (1, kv_heads, tokens, SIZE),
        (1, kv_heads, tokens, value_size),
        (HEADS,),
    )
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


def scores_of(case: dict[str, Any], sinks: torch.Tensor) -> Scores:
    return Scores(scale=0.6, **case | {"sinks": sinks if case.get("sinks") else None})


def shares(query: torch.Tensor, key: torch.Tensor, scores: Scores) -> torch.Tensor:
    """Return the softmax of one document's scores, as [1, heads, n, n]."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query @ key.mT * scores.scale
    if scores.softcap:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    length = query.shape[2]
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    if scores.window:
        visible &= torch.ones(length, length, dtype=torch.bool).triu(1 - scores.window)
    logits = logits.masked_fill(~visible, -torch.inf)
    if scores.sinks is None:
        return torch.softmax(logits, dim=-1)
    column = scores.sinks[None, :, None, None].expand(*logits.shape[:3], 1)
    return torch.softmax(torch.cat([column, logits], dim=-1), dim=-1)[..., 1:]


def expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scores: Scores
) -> torch.Tensor:
    outputs = []
    for begin, end in pairwise(BOUNDS):
        part = slice(begin, end)
        repeated = value[:, :, part].repeat_interleave(HEADS // value.shape[1], dim=1)
        outputs.append(shares(query[:, :, part], key[:, :, part], scores) @ repeated)
    return torch.cat(outputs, dim=2).transpose(1, 2)


def with_gradients(output: torch.Tensor, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    gradients = torch.autograd.grad((output * weights).sum(), parts)
    return [output.detach(), *gradients]


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["each key once", "grouped"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_attention_equals_the_plain_formula(
    case: dict[str, Any], kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_attention, "_BLOCK", 4)
    *parts, sinks = tensors(kv_heads)
    scores = scores_of(case, sinks)
    inputs = [*parts, *([sinks] if case.get("sinks") else [])]
    found, _ = segments_attention(
        torch.nn.Module(),
        *parts,
        None,
        scores.scale,
        cu_seq_lens_q=torch.tensor(BOUNDS, dtype=torch.int32),
        max_length_q=13,
        sliding_window=scores.window,
        softcap=scores.softcap,
        s_aux=scores.sinks,
    )
    torch.testing.assert_close(
        with_gradients(found, inputs), with_gradients(expected(*parts, scores), inputs)
    )


def test_scores_of_bf16_are_not_rounded() -> None:
    parts = [torch.full((1, 1, 2, 1), value).bfloat16() for value in (1.0, 0.0, 1.0)]
    parts[1][0, 0, 1] = 256.0
    values = torch.tensor([[0.0], [1.0]]).bfloat16()
    scores = Scores(scale=1.001, softcap=1000.0)
    found = document_attention.attend(parts[0], parts[1], values[None, None], scores, [0, 2])
    assert found.flatten().tolist() == [0.0, 1.0]


class Kernels:
    """The kernels of flash attention for one head size, in plain torch, as GPUs have them.

    They know no sinks. The backward one relies on the output and the sums that it is given.
    """

    def __init__(self) -> None:
        self.windows: set[tuple[bool, int, int]] = set()

    def probabilities(
        self, query: torch.Tensor, key: torch.Tensor, bounds: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores as [heads, tokens, tokens], masked, and the repeated keys."""
        tokens, heads, _ = query.shape
        repeated = key.repeat_interleave(heads // key.shape[1], dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, repeated) * options["scale"]
        document = torch.bucketize(torch.arange(tokens), bounds[1:], right=True)
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
        visible = (document[:, None] == document) & (distance >= 0)
        if options["window_size_left"] >= 0:
            visible &= distance <= options["window_size_left"]
        return scores.masked_fill(~visible, -torch.inf), repeated

    def forward(self, *inputs: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        query, key, value, bounds, _, longest, _, dropout, causal = inputs
        assert query.shape[-1] == value.shape[-1]
        assert (longest, dropout) == (13, 0.0)
        self.windows.add((causal, options["window_size_left"], options["window_size_right"]))
        scores, _ = self.probabilities(query, key, bounds, **options)
        values = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        output = torch.einsum("hqk,khd->qhd", torch.softmax(scores, dim=-1), values)
        empty = torch.empty(0)
        return output, torch.logsumexp(scores, dim=-1), empty, empty, empty

    def backward(self, *inputs: Any, **options: Any) -> tuple[torch.Tensor, ...]:
        gradient, query, key, value, output, sums, bounds, *_ = inputs
        group = query.shape[1] // key.shape[1]
        scores, keys = self.probabilities(query, key, bounds, **options)
        shares = torch.exp(scores - sums[..., None])
        values = value.repeat_interleave(group, dim=1)
        rest = (gradient * output).sum(dim=-1).T[..., None]
        inner = shares * (torch.einsum("qhd,khd->hqk", gradient, values) - rest) * options["scale"]
        grad_query = torch.einsum("hqk,khd->qhd", inner, keys)
        grad_key = torch.einsum("hqk,qhd->khd", inner, query).unflatten(1, (-1, group)).sum(2)
        grad_value = torch.einsum("hqk,qhd->khd", shares, gradient).unflatten(1, (-1, group)).sum(2)
        return grad_query, grad_key, grad_value


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Replace the kernels of aten, which need a GPU. All above them is torch's and ours."""
    importlib.import_module("torch.nn.attention.varlen")  # it registers the real ones
    replaced = Kernels()
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", replaced.forward)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", replaced.backward)
    return replaced


FLASH = {name: case for name, case in CASES.items() if "softcap" not in case} | {
    "a window and sinks": {"window": 5, "sinks": True}
}


@pytest.mark.parametrize("value_size", [SIZE, 5], ids=["equal sizes", "short values"])
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["each key once", "grouped"])
@pytest.mark.parametrize("case", FLASH.values(), ids=FLASH.keys())
def test_what_is_made_of_the_kernels_for_gpus_equals_the_plain_formula(
    case: dict[str, Any], kv_heads: int, value_size: int, kernels: Kernels
) -> None:
    *parts, sinks = tensors(kv_heads, value_size)
    scores = scores_of(case, sinks)
    inputs = [*parts, *([sinks] if case.get("sinks") else [])]
    bounds = torch.tensor(BOUNDS, dtype=torch.int32)
    found = flash_attention.attend(*parts, scores, bounds, 13)
    torch.testing.assert_close(
        with_gradients(found, inputs), with_gradients(expected(*parts, scores), inputs)
    )
    window = scores.window
    assert kernels.windows == {(True, -1, 0) if window is None else (False, window - 1, 0)}


def test_chunks_begin_anew_in_each_document() -> None:
    *parts, _ = tensors(4)
    layer = torch.nn.Module()
    layer.layer_idx = 1
    layer.config = SimpleNamespace(
        layer_types=["full_attention", "chunked_attention"], attention_chunk_size=5
    )
    cut = torch.tensor([0, 5, 7, 8, 13, 18, 19, 24, 29, 32], dtype=torch.int32)
    bounds = torch.tensor(BOUNDS, dtype=torch.int32)
    found, _ = segments_attention(layer, *parts, None, cu_seq_lens_q=bounds, max_length_q=13)
    other, _ = segments_attention(
        torch.nn.Module(), *parts, None, cu_seq_lens_q=cut, max_length_q=5
    )
    assert torch.equal(found, other)
    layer.layer_idx = 0
    whole, _ = segments_attention(layer, *parts, None, cu_seq_lens_q=bounds, max_length_q=13)
    assert not torch.equal(whole, other)


def test_dropout_is_refused() -> None:
    *parts, _ = tensors(4)
    bounds = torch.tensor(BOUNDS, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"dropout \(0.1\)"):
        segments_attention(
            torch.nn.Module(), *parts, None, cu_seq_lens_q=bounds, max_length_q=13, dropout=0.1
        )
