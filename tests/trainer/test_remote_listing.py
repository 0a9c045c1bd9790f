"""The files of a listing that are wanted, and refusals before a byte is downloaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_trainer.common.errors import TrainerError
from finetune_trainer.sources.download import download
from finetune_trainer.sources.listing import RemoteFile, data_files
from tests.trainer.silent import SilentReporter


class Listed:
    """An address with one file that must not be read."""

    address = "hf://org/strange"

    def __init__(self, name: str, size: int) -> None:
        self.listed = [RemoteFile(name, size, "x")]

    def files(self) -> list[RemoteFile]:
        return self.listed

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        raise AssertionError("nothing is downloaded")


def refusal(remote: Listed, folder: Path) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        download(remote, remote.files(), folder, "pvc://w/cache", SilentReporter())
    return caught.value


def test_room_is_checked_before_the_download(tmp_path: Path) -> None:
    error = refusal(Listed("model.safetensors", 10**18), tmp_path)
    assert error.code == 73
    assert "pvc://w/cache: hf://org/strange needs 1000000000.00 GB and" in error.message
    assert "make room, or name another cache" in error.message


@pytest.mark.parametrize("name", ["../a.json", "/etc/a.json", "a/../../b", "a//b", "a/./b", ""])
def test_a_name_cannot_lead_out_of_the_cache(tmp_path: Path, name: str) -> None:
    error = refusal(Listed(name, 1), tmp_path)
    assert error.code == 64
    assert repr(name) in error.message


def test_a_path_selects_the_same_files_as_on_a_claim() -> None:
    names = [
        "a.jsonl",
        "deep/b.csv.gz",
        "deep/er/c.parquet",
        "deep/.hidden/d.jsonl",
        ".e.jsonl",
        "deep/state.json",
        "notes.txt",
    ]
    listed = [RemoteFile(name, 1, "x") for name in names]

    def found(path: str) -> list[str]:
        return [file.name for file in data_files(listed, path, "s3://bucket/x")]

    assert found("") == ["a.jsonl", "deep/b.csv.gz", "deep/er/c.parquet"]
    assert found("deep") == ["deep/b.csv.gz", "deep/er/c.parquet"]
    assert found("deep/*") == ["deep/b.csv.gz", "deep/state.json"]
    assert found("**/*.parquet") == ["deep/er/c.parquet"]
    assert found("[ab].jsonl") == ["a.jsonl"]
    assert found("[!b].jsonl") == ["a.jsonl"]
    assert found(".e.jsonl") == [".e.jsonl"]
    assert found("notes.txt") == ["notes.txt"]
    for path in ("*.csv", "dee", "b.csv.gz"):
        with pytest.raises(TrainerError, match="no such file"):
            found(path)
