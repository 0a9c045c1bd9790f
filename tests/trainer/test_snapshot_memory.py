"""A checkpoint is copied only where memory is left for training and for other pods of the host."""

from types import SimpleNamespace

import pytest
import torch

from finetune_trainer.checkpoint import fragments
from finetune_trainer.checkpoint.fragments import Snapshot
from finetune_trainer.model.ranks import Ranks


@pytest.mark.parametrize(
    ("device", "available", "is_copy"),
    [("cuda", 1200, True), ("cuda", 1100, False), ("cpu", 4100, True), ("cpu", 4000, False)],
)
def test_training_on_the_host_keeps_most_of_the_memory(device, available, is_copy, monkeypatch):
    monkeypatch.setattr(fragments, "live", lambda _: {"w@0|master": torch.zeros(256)})
    monkeypatch.setattr(fragments.machine, "available_memory", lambda: available)
    ranks = Ranks(0, 1, torch.device(device), SimpleNamespace())
    assert Snapshot(SimpleNamespace(), ranks).is_copy == is_copy
