"""The trainer never mixes tensors of host and device; the mode that checks it finds it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_trainer.data.prepared import Row
from finetune_trainer.model import language_model
from tests.trainer.two_devices import DEVICE, TwoDevices


def test_a_mixture_is_refused_as_by_torch() -> None:
    mode = TwoDevices()
    here, there = torch.ones(4), mode.put(torch.ones(4))
    with mode:
        assert (here.device.type, there[1:].device) == ("cpu", DEVICE)
        with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
            torch.equal(here, there)
        with pytest.raises(RuntimeError, match="at least two devices, cuda:0 and cpu"):
            here + (2 * there).to(torch.bfloat16)
        assert torch.equal(here.to(there.device), there)
        assert torch.equal(there.cpu(), here)
        assert torch.equal(torch.ones(4, device=DEVICE), there)
        here.copy_(2 * there)
        assert (here + here).device.type == "cpu"
        assert (there * torch.tensor(2.0)).device == DEVICE
    assert here.tolist() == [2.0] * 4


def test_the_loss_of_a_batch_mixes_no_devices(tiny_model: Path) -> None:
    model = language_model.load(tiny_model, torch.float32)
    row = Row(
        np.arange(12, dtype=np.int32), np.arange(12) % 4 > 0, np.array([8, 4], dtype=np.int32)
    )
    expected = model(language_model.make_batch([row], torch.device("cpu")))
    with TwoDevices([*model.parameters(), *model.buffers()]):
        batch = language_model.make_batch([row], DEVICE)
        loss = model(batch)
        assert (batch.tokens.device, loss.device) == (DEVICE, DEVICE)
    assert torch.equal(loss, expected)
