"""AdamW in chunks computes what torch's AdamW does, bit by bit, without its large temporaries."""

import pytest
import torch

from finetune_trainer.model import chunked_adamw
from finetune_trainer.model.chunked_adamw import ChunkedAdamW


@pytest.mark.parametrize("size", [1, 64, 1000, 12_345, 100_003])
def test_chunks_do_not_change_a_bit(size, monkeypatch):
    monkeypatch.setattr(chunked_adamw, "_CHUNK", 1024)
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    generator = torch.Generator().manual_seed(size)
    start = torch.randn(size, generator=generator)
    plain, chunked = (torch.nn.Parameter(start.clone()) for _ in range(2))
    theirs, ours = torch.optim.AdamW([plain], **options), ChunkedAdamW([chunked], **options)
    for step in range(5):
        plain.grad = torch.randn(size, generator=generator)
        chunked.grad = plain.grad.clone()
        for optimizer in (theirs, ours):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            optimizer.step()
        assert torch.equal(plain, chunked)
    for name, tensor in theirs.state[plain].items():
        assert torch.equal(tensor, ours.state[chunked][name]), name
