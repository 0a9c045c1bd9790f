"""Files of our writer in the safetensors library, and files of the library in our reader."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finetune_trainer.run_dir import tensor_file
from finetune_trainer.run_dir.files import file_digest


def test_the_library_reads_the_files_of_our_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "_CHUNK", 100)
    monkeypatch.setattr(tensor_file, "_SYNC_EVERY", 250)
    whole = torch.randn(50, 7)
    tensors = {
        "a@0|master": whole.flatten()[3:90],  # a view of a larger tensor
        "b": whole.to(torch.bfloat16),
        "c": whole.T,  # not contiguous
        "none": torch.empty(0),
    }
    beats: list[None] = []
    file = tmp_path / "x.safetensors"
    found = tensor_file.write(file, tensors, {"adamStep": "4"}, lambda: beats.append(None))
    assert found == file_digest(file)
    assert len(beats) > 20
    with safe_open(str(file), framework="pt") as reader:
        assert reader.metadata() == {"adamStep": "4"}
        assert set(reader.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(reader.get_tensor(name), tensor)
            assert reader.get_tensor(name).dtype == tensor.dtype
        assert torch.equal(reader.get_slice("a@0|master")[2:5], tensors["a@0|master"][2:5])


def test_slices_are_read_from_files_of_the_library(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(11).to(torch.bfloat16)}
    save_file(tensors, tmp_path / "x", {"adamStep": "4"})
    reader = tensor_file.TensorFile(tmp_path / "x")
    assert reader.metadata == {"adamStep": "4"}
    assert {e.name: (e.shape, e.dtype, e.numel, e.nbytes) for e in reader.entries} == {
        "a": ((7, 5), torch.float32, 35, 140),
        "b": ((11,), torch.bfloat16, 11, 22),
    }
    for name, tensor in tensors.items():
        flat = tensor.flatten()
        for begin, end in ((0, len(flat)), (3, 9), (4, 4)):
            assert torch.equal(reader.read(name, begin, end), flat[begin:end])


def test_tensors_of_all_types_that_base_models_have_are_read(tmp_path: Path) -> None:
    types = (torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32)
    types += (torch.int16, torch.int8, torch.uint8, torch.bool)
    tensors = {str(dtype): torch.arange(6).to(dtype) for dtype in types}
    save_file(tensors, tmp_path / "x")
    reader = tensor_file.TensorFile(tmp_path / "x")
    for name, tensor in tensors.items():
        found = reader.read(name, 1, 5)
        assert found.dtype == tensor.dtype
        assert torch.equal(found.double(), tensor[1:5].double())


def test_a_file_that_is_cut_short_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    file = tmp_path / "x"
    save_file({"a": torch.randn(100)}, file)
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 40)
    reader = tensor_file.TensorFile(file)
    assert len(reader.read("a", 0, 80)) == 80
    with pytest.raises(OSError, match="x: a is cut short"):
        reader.read("a", 80, 100)


def test_pieces_and_complete_tensors_give_the_same_file(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(30, 4), "b": torch.randn(9)}
    expected = tensor_file.write(tmp_path / "complete", tensors, {"format": "pt"}, lambda: None)
    entries = [tensor_file.Entry(n, tuple(t.shape), t.dtype) for n, t in tensors.items()]
    pieces = (part for t in tensors.values() for part in t.flatten().split(7))
    found = tensor_file.write_pieces(
        tmp_path / "pieces", entries, pieces, {"format": "pt"}, lambda: None, hashlib.sha256()
    )
    data = (tmp_path / "pieces").read_bytes()
    assert data == (tmp_path / "complete").read_bytes()
    assert found == hashlib.sha256(data).hexdigest()
    assert expected == file_digest(tmp_path / "pieces")


def test_too_few_pieces_are_an_error(tmp_path: Path) -> None:
    entries = [tensor_file.Entry("a", (10,), torch.float32)]
    with pytest.raises(ValueError, match=r"bytes written, \d+ promised"):
        tensor_file.write_pieces(
            tmp_path / "x", entries, [torch.zeros(9)], {}, lambda: None, hashlib.sha256()
        )
