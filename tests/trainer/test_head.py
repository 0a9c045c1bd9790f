"""The fused loss head, compared with plain cross-entropy, including gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune_trainer.model import head
from finetune_trainer.model.head import LogitScale

CASES = {"one chunk": 1 << 26, "chunks of two positions": 100, "one position per chunk": 1}


@pytest.mark.parametrize("elements", CASES.values(), ids=CASES.keys())
def test_head_equals_plain_cross_entropy(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", elements)
    torch.manual_seed(0)
    hidden = torch.randn(7, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(50, (7,))
    expected = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected_gradients = torch.autograd.grad(expected / 3, (hidden, weight))
    loss = head.linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(loss / 3, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)


SCALES = {
    "a multiplier": (LogitScale(multiplier=0.0625), False),
    "a soft-cap": (LogitScale(softcap=3.0), False),
    "a bias": (LogitScale(), True),
    "all of them": (LogitScale(multiplier=2.0, softcap=5.0), True),
}


@pytest.mark.parametrize(("scale", "has_bias"), SCALES.values(), ids=SCALES.keys())
def test_scaled_logits_equal_plain_cross_entropy(
    scale: LogitScale, has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", 100)
    torch.manual_seed(0)
    hidden = torch.randn(7, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    bias = torch.randn(50, requires_grad=True) if has_bias else None
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    targets = torch.randint(50, (7,))
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * scale.multiplier
    if scale.softcap:
        logits = scale.softcap * torch.tanh(logits / scale.softcap)
    expected = cross_entropy(logits, targets, reduction="sum")
    loss = head.linear_cross_entropy(hidden, weight, targets, bias, scale)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(loss / 3, inputs),
        torch.autograd.grad(expected / 3, inputs),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_loss_of_a_bf16_head_is_fp32() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(400, 32, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(400, (64,))
    loss = head.linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    expected = cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_the_scale_of_a_bf16_gradient_is_not_rounded() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(400, 32, dtype=torch.bfloat16)
    loss = head.linear_cross_entropy(hidden, weight, torch.randint(400, (64,)))
    (unscaled,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss / 3, hidden)
    assert scaled.dtype == torch.bfloat16
    assert torch.equal(scaled, (unscaled.float() / 3).bfloat16())


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.full((2, 4), 1e4, requires_grad=True)
    weight = torch.tensor([[1.0] * 4, [-1.0] * 4], requires_grad=True)
    loss = head.linear_cross_entropy(hidden, weight, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(8e4)
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def test_rows_without_trained_tokens_give_zero_loss_and_zero_gradients() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    weight = torch.ones(3, 4, requires_grad=True)
    loss = head.linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_evaluation_computes_no_gradients() -> None:
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        loss = head.linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 2]))
    assert not loss.requires_grad
