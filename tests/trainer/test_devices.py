"""Parts of the model give the same results on a GPU as on the CPU. Skipped without a GPU."""

from typing import Any

import pytest
import torch

from finetune_trainer.model.attention import segments_attention
from finetune_trainer.model.head import linear_cross_entropy

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA device"
)
BOUNDS = [0, 7, 8, 40, 64]


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a window": {"sliding_window": 5},
    "a soft-cap": {"softcap": 2.0},
    "sinks": {"s_aux": True},
    "sinks and a window": {"s_aux": True, "sliding_window": 5},
    "short values": {"size": 16},
    "large heads": {"size": 512},
}


def attention(
    device: str, dtype: torch.dtype, kv_heads: int, features: dict[str, Any]
) -> list[torch.Tensor]:
    """Return the output and all gradients, in fp32 on the host."""
    torch.manual_seed(1)
    features = dict(features)
    size = features.pop("size", 32)
    tokens, keys = BOUNDS[-1], max(32, size)
    shapes = [(1, 4, tokens, keys), (1, kv_heads, tokens, keys), (1, kv_heads, tokens, size)]
    parts = [torch.randn(shape).to(dtype).to(device).requires_grad_() for shape in shapes]
    inputs = list(parts)
    if features.get("s_aux"):
        features["s_aux"] = torch.randn(4).to(dtype).to(device).requires_grad_()
        inputs.append(features["s_aux"])
    bounds = torch.tensor(BOUNDS, dtype=torch.int32, device=device)
    output, _ = segments_attention(
        torch.nn.Module(), *parts, None, cu_seq_lens_q=bounds, max_length_q=32, **features
    )
    gradients = torch.autograd.grad(output.float().square().sum(), inputs)
    return [tensor.detach().float().cpu() for tensor in (output, *gradients)]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-1)], ids=["FP32", "BF16"]
)
def test_attention_is_equal_on_cpu_and_gpu(
    dtype: torch.dtype, tolerance: float, kv_heads: int, features: dict[str, Any]
) -> None:
    expected = attention("cpu", dtype, kv_heads, features)
    found_ones = attention("cuda", dtype, kv_heads, features)
    for found, reference in zip(found_ones, expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=tolerance, atol=tolerance)


def loss_head(device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the loss and the gradients of hidden states and weight, in fp32 on the host."""
    torch.manual_seed(2)
    hidden = torch.randn(50, 32).to(dtype).to(device).requires_grad_()
    weight = torch.randn(1000, 32).to(dtype).to(device).requires_grad_()
    targets = torch.randint(1000, (50,)).to(device)
    loss = linear_cross_entropy(hidden, weight, targets)
    (loss / 50).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [loss.detach().cpu() / 50, hidden.grad.float().cpu(), weight.grad.float().cpu()]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)], ids=["FP32", "BF16"]
)
def test_the_loss_head_is_equal_on_cpu_and_gpu(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.model.head._CHUNK_ELEMENTS", 16_000)  # several chunks
    for found, reference in zip(loss_head("cuda", dtype), loss_head("cpu", dtype), strict=True):
        torch.testing.assert_close(found, reference, rtol=tolerance, atol=tolerance)
