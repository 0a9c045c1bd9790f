"""Writes of small files by several processes at the same time."""

import os
from pathlib import Path

import pytest

from finetune_trainer.run_dir import files


def test_writers_with_the_same_process_id_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids are the same in different containers."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    target, write, others = tmp_path / "run.json", files._write, ["the other one's"]

    def write_meanwhile(path: Path, text: str) -> None:
        write(path, text)
        if others:
            files.write_atomic(target, others.pop())

    monkeypatch.setattr(files, "_write", write_meanwhile)
    files.write_atomic(target, "mine")
    assert target.read_text() == "mine"
    assert os.listdir(tmp_path) == ["run.json"]


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(OSError, match=r"run\.json"):
        files.write_atomic(tmp_path / "run.json", "x")
    assert os.listdir(tmp_path) == ["run.json"]
