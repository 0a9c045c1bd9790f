"""AdamW with bf16 moments, compared with torch's AdamW."""

import copy

import torch

from finetune_trainer.model.compact_adamw import CompactAdamW, _rounded

_OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}


def problem(seed: int = 1) -> tuple[torch.nn.Parameter, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.nn.Parameter(torch.randn(2000, generator=generator)),
        torch.randn(2000, generator=generator),
    )


def descend(optimizer: torch.optim.Optimizer, weights: torch.Tensor, target: torch.Tensor) -> None:
    """Make one step towards the target, with a disturbance that depends on the weights."""
    optimizer.zero_grad()
    loss = ((weights - target) ** 2).mean() + 0.01 * torch.sin(40 * weights).mean()
    loss.backward()
    optimizer.step()


def compact(weights: torch.nn.Parameter, decay: float = 0.0, seed: int = 3) -> CompactAdamW:
    return CompactAdamW([{"params": [weights], "weight_decay": decay}], seed=seed, **_OPTIONS)


def test_it_converges_like_adamw() -> None:
    (weights, target), (plain_weights, _) = problem(), problem()
    ours = compact(weights, decay=0.01)
    plain = torch.optim.AdamW([plain_weights], weight_decay=0.01, **_OPTIONS)
    start = (weights - target).norm()
    for _ in range(300):
        descend(ours, weights, target)
        descend(plain, plain_weights, target)
    assert (weights - plain_weights).norm() < 0.02 * start
    state = ours.state[weights]
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    assert weights.dtype == torch.float32


def test_the_second_moment_changes_by_less_than_bf16_resolves() -> None:
    weights = torch.nn.Parameter(torch.zeros(4096))
    optimizer = compact(weights)
    for _ in range(1000):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    found = optimizer.state[weights]["exp_avg_sq"].float().mean()
    assert (
        abs(float(found) - (1 - 0.999**1000)) < 0.01
    )  # rounded to nearest, it would stay near 0.25


def test_rounding_is_right_on_average_and_keeps_values_that_bf16_represents() -> None:
    noise = torch.Generator().manual_seed(1)
    values = torch.full((100_000,), 1.003)  # between 1.0 and 1.0078125
    rounded = _rounded(values, noise)
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert abs(float(rounded.mean()) - 1.003) < 1e-4
    exact = torch.tensor([0.0, -2.5, 1.0078125, float("inf")])
    assert torch.equal(_rounded(exact, noise), exact)
    assert torch.equal(rounded.to(torch.bfloat16).float(), rounded)


def test_the_largest_seeds_give_different_noise() -> None:
    found = []
    for seed in (2**31 - 1, 2**31 - 2):
        weights, target = problem()
        optimizer = compact(weights, seed=seed)
        for _ in range(3):
            descend(optimizer, weights, target)
        found.append(weights)
    assert torch.isfinite(found[0]).all()
    assert not torch.equal(*found)


def test_a_resumed_run_draws_the_same_noise() -> None:
    weights, target = problem()
    optimizer = compact(weights)
    for _ in range(5):
        descend(optimizer, weights, target)
    copied = torch.nn.Parameter(weights.detach().clone())
    resumed = compact(copied)
    resumed.state[copied] = copy.deepcopy(optimizer.state[weights])
    for _ in range(5):
        descend(optimizer, weights, target)
        descend(resumed, copied, target)
    assert torch.equal(weights, copied)
