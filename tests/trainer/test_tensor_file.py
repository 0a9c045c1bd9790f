"""Our writer, read by the library."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from finetune_trainer import tensor_file
from finetune_trainer.data import digest


def test_the_library_reads_what_we_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_CHUNK", 100)
    monkeypatch.setattr(tensor_file, "_SYNC_EVERY", 250)
    whole = torch.randn(50, 7)
    tensors = {
        "a@0|master": whole.flatten()[3:90],  # a view into something larger
        "b": whole.to(torch.bfloat16),
        "c": whole.T,  # not contiguous
        "none": torch.empty(0),
    }
    beats: list[None] = []
    file = tmp_path / "x.safetensors"
    found = tensor_file.write(file, tensors, {"adamStep": "4"}, lambda: beats.append(None))
    assert found == digest.of_file(file)
    assert len(beats) > 20
    with safe_open(str(file), framework="pt") as reader:
        assert reader.metadata() == {"adamStep": "4"}
        assert set(reader.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(reader.get_tensor(name), tensor)
            assert reader.get_tensor(name).dtype == tensor.dtype
        assert torch.equal(reader.get_slice("a@0|master")[2:5], tensors["a@0|master"][2:5])
