"""The loss of routers, compared with transformers', and the experts that no token reaches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.prepared import Row
from finetune_trainer.model.expert_use import ExpertUse
from finetune_trainer.model.language_model import make_batch
from finetune_trainer.model.router_loss import RouterLoss, router_loss
from tests.trainer.test_architectures import tiny

EXPERTS, LAYERS = 5, 3
LENGTHS = (4, 1, 9)
TRAINED = (3, 0, 5)


def documents() -> list[Row]:
    made = []
    for length, trained in zip(LENGTHS, TRAINED, strict=True):
        marks = np.zeros(length, dtype=np.uint8)
        marks[length - trained :] = 1
        made.append(Row(np.zeros(length, np.uint32), marks, np.array([length], np.uint32)))
    return made


def packed(rows: list[Row]) -> Row:
    parts = [(row.tokens, row.trained, row.segments) for row in rows]
    return Row(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def logits(tokens: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(7)
    return tuple(torch.randn(tokens, EXPERTS, requires_grad=True) for _ in range(LAYERS))


def value(loss: RouterLoss, rows: list[Row], layers: tuple[torch.Tensor, ...]) -> torch.Tensor:
    batch = make_batch(rows, torch.device("cpu"))
    return loss(layers, batch.bounds, batch.positions, batch.predict)


def test_it_is_that_of_transformers_for_each_document_however_they_are_packed() -> None:
    layers = logits(sum(LENGTHS))
    expected: Any = 0.0
    begin = 0
    for length, trained in zip(LENGTHS, TRAINED, strict=True):
        parts = tuple(layer[begin : begin + length] for layer in layers)
        expected = expected + 0.3 * trained * load_balancing_loss_func(parts, EXPERTS, 2)
        begin += length
    loss, rows = RouterLoss(0.3, 2), documents()
    for arrangement in (rows, [packed(rows)], [packed(rows[:2]), rows[2]]):
        found = value(loss, arrangement, layers)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, layers),
            torch.autograd.grad(expected, layers, retain_graph=True),
        )


def test_the_coefficient_is_that_of_the_job_or_of_the_model() -> None:
    config = tiny("mixtral", router_aux_loss_coef=0.02).config()
    assert router_loss(config, "m", None) == RouterLoss(0.02, 2)
    assert router_loss(config, "m", 0.5) == RouterLoss(0.5, 2)
    assert router_loss(config, "m", 0.0) is None
    dense = tiny("llama").config()
    assert router_loss(dense, "m", None) is router_loss(dense, "m", 0.0) is None
    without = tiny("llama4_text", router_aux_loss_coef=0.1).config()
    assert router_loss(without, "m", None) is None


def test_a_coefficient_that_the_model_cannot_use_is_refused() -> None:
    with pytest.raises(TrainerError) as caught:
        router_loss(tiny("llama").config(), "pvc://w/model", 0.01)
    assert caught.value.code == 64
    assert caught.value.message == (
        "training.routerAuxLoss 0.01: in transformers, pvc://w/model (model_type llama) has no "
        "auxiliary loss of routers; remove the field, or set it to 0"
    )


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_experts_without_tokens_are_named() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(
        tiny("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8).config()
    )
    use = ExpertUse(model)
    assert use.unused() == []  # nothing was computed yet
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # all tokens choose the same two of equal experts
    ids = torch.arange(10)[None]
    model.eval()
    model(input_ids=ids)
    assert use.unused() == []  # evaluations do not count
    model.train()
    model(input_ids=ids)
    unused = use.unused()
    assert len(unused) == 4
    assert {name.rsplit(".", 1)[0] for name in unused} == {
        "model.layers.0.mlp.experts",
        "model.layers.1.mlp.experts",
    }
    assert use.unused() == []
