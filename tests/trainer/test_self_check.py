"""A fused kernel that misbehaves on a device costs speed, never a model."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from finetune_trainer.model import (
    attention,
    flash_attention,
    head,
    kernels,
    language_model,
    self_check,
)
from finetune_trainer.model.kernels import ADAMW, ATTENTION, HEAD, LAYER, Kernels
from finetune_trainer.model.scores import Scores
from finetune_trainer.model.self_check import EVERYTHING, Request
from finetune_trainer.training import kernel_choice

MODULE = "tests.trainer.spoiled_kernels"


def results(registry: str, model: Path | str = "", seconds: float = 60) -> dict[str, str | None]:
    request = Request(f"{MODULE}:{registry}", str(model), "bfloat16", "cpu")
    return self_check.run(request, seconds=seconds)


@pytest.fixture(scope="module")
def spoiled(tiny_model: Path) -> dict[str, str | None]:
    return results("every_kind", tiny_model, seconds=3)


WANTED = {
    ATTENTION: "the output 1 differs by ",
    HEAD: None,
    ADAMW: None,
    LAYER: None,  # without the attention that has failed
    "right": None,
    "wrong": "the output 1 differs by 0.0",
    "wrong gradient": "the gradient of input 1 differs by 0.",
    "not a number": "the output 1 differs by nan from that of plain operations (at most 0.03 is "
    "allowed)",
    "raising": "RuntimeError: no kernel image is available for this device",
    "killed": "its process ended with signal 9",
    "hanging": "it did not finish within 3 s",
    "last": None,  # knows that seven have failed, in whichever process
}


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("name", WANTED)
def test_each_way_to_misbehave_is_found(spoiled: dict[str, str | None], name: str):
    wanted, found = WANTED[name], spoiled[name]
    assert list(spoiled) == list(WANTED)
    assert (found is None) if wanted is None else (found or "").startswith(wanted)


@pytest.mark.slow
@pytest.mark.slow
def test_without_any_comparison_no_kernel_is_used():
    found = results("unusable")
    assert found == {EVERYTHING: "its process ended with exit code 1"}
    assert Kernels.passed(found).used == frozenset()


@pytest.mark.slow
def test_attention_that_leaks_across_documents_is_replaced_by_the_plain_one(
    spoiled: dict[str, str | None], tiny_model: Path
):
    chosen = Kernels.passed({name: spoiled[name] for name in (ATTENTION, HEAD, ADAMW, LAYER)})
    assert chosen.used == {HEAD, ADAMW}
    assert chosen.problem
    assert chosen.problem.startswith("slower, without fused attention (the output 1 differs by ")
    model = language_model.load(tiny_model, torch.bfloat16)
    Kernels.without_gpu().apply(model)
    assert model.model.config._attn_implementation == attention.PLAIN
    Kernels(frozenset({ATTENTION, HEAD})).apply(model)
    assert model.model.config._attn_implementation == attention.NAME
    alone = language_model.load(tiny_model, torch.bfloat16, "Document")
    Kernels.without_gpu().apply(alone)
    assert alone.model.config._attn_implementation == attention.PLAIN_DOCUMENT


def test_kernels_that_differ_together_are_not_used_in_the_model():
    found = Kernels.passed({ATTENTION: None, HEAD: None, ADAMW: None, LAYER: "it differs"})
    assert found.used == {ADAMW}
    assert found.problem == "slower, without fused layer (it differs)"


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_plain_loss_head_computes_the_same(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(head, "_CHUNK_ELEMENTS", 300)  # several chunks
    torch.manual_seed(1)
    scale = head.LogitScale(0.5, softcap)
    inputs = [torch.randn(20, 8), torch.randn(50, 8), torch.randint(50, (20,)), torch.randn(50)]
    check = self_check.Check(
        HEAD,
        partial(head.linear_cross_entropy, scale=scale),
        partial(head.plain_linear_cross_entropy, scale=scale),
        lambda _: inputs,
        1e-5,
    )
    assert self_check.compare(check, torch.device("cpu")) is None
    layer = torch.nn.Linear(8, 50)
    module = head.LossHead(layer, scale)
    module.is_fused = False
    expected = head.plain_linear_cross_entropy(
        inputs[0], layer.weight, inputs[2], layer.bias, scale
    )
    assert torch.equal(module(inputs[0], inputs[2]), expected)


def test_all_ranks_use_what_every_one_of_them_can_use():
    good = Kernels(frozenset({ATTENTION, HEAD, ADAMW}))
    bad = Kernels(frozenset({HEAD, ADAMW}), {ATTENTION: "it was wrong"})
    without_liger = Kernels(frozenset({ATTENTION, HEAD}))
    found = kernel_choice.merged([good, good, good, bad, bad, without_liger], processes=2)
    assert found.used == {HEAD}
    assert found.problems == {ATTENTION: "worker 1, device 1: it was wrong"}


@pytest.mark.slow
@pytest.mark.slow
def test_two_ranks_choose_alike_and_name_the_device():
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": f"127.254.96.{1 + os.getpid() % 250}",
        "MASTER_PORT": "29500",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", MODULE],
            env=environment | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        lines = [rank.communicate(timeout=120)[0].splitlines()[-1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    problem = "slower, without fused attention (worker 1, device 0: it was wrong)"
    assert lines == [f"['{HEAD}'] {problem}"] * 2


def test_a_cpu_needs_no_self_check(tiny_model: Path):
    chosen = kernel_choice.check(torch.device("cpu"), tiny_model, torch.bfloat16, lambda: None)
    assert chosen == Kernels.without_gpu() == kernels.Kernels(frozenset({HEAD}))


@pytest.mark.parametrize("newer", [True, False], ids=["torch 2.13", "torch 2.11"])
def test_flash_attention_is_called_as_each_version_of_torch_wants_it(
    newer: bool, monkeypatch: pytest.MonkeyPatch
):
    calls: list[dict[str, object]] = []

    def of_newer(query, key, value, *_, scale, window_size, enable_gqa=False):
        calls.append({"scale": scale, "window": window_size, "enable_gqa": enable_gqa})
        return query

    def of_older(query, key, value, *_, scale, window_size):
        return of_newer(query, key, value, scale=scale, window_size=window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_newer if newer else of_older)
    query, key = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16)
    bounds = torch.tensor([0, 8], dtype=torch.int32)
    found = flash_attention.attend(query, key, key, Scores(0.5), bounds, 8)
    assert torch.equal(found, query.transpose(1, 2))
    assert calls == [{"scale": 0.5, "window": (-1, 0), "enable_gqa": newer}]
