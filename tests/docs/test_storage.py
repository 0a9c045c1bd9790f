"""The figures and the messages of docs/storage.md are those of the code."""

import re
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from finetune_api.spec import Optimizer
from finetune_local.cache import TREE
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.prepare import disk_space
from finetune_trainer.run_dir.paths import RunPaths
from tests.docs.pages import code, page, rows, sections

PAGE = sections(page("storage"))
PARAMETERS = 8e9  # of the page's examples
VAST = 1e6  # times that fits nowhere


def test_a_run_needs_the_room_that_the_page_says(tmp_path: Path) -> None:
    assert "4 x 96 GB + 16 GB = 400 GB" in PAGE["Room"]
    config = RunConfig.model_validate(
        {
            "jobName": "a",
            "jobNamespace": "default",
            "jobUid": "uid",
            "role": "prepare",
            "model": {"source": "pvc://w/model"},
            "dataset": {"train": [{"source": "pvc://w/train.jsonl"}], "validationFraction": 0.01},
            "training": {},
            "checkpoints": {"storage": "pvc://w/runs", "keepLast": 2},
            "mounts": {"w": str(tmp_path)},
        }
    )
    paths = RunPaths.of(config)
    paths.storage.mkdir()
    with pytest.raises(TrainerError) as caught:
        disk_space.check(config, paths, int(PARAMETERS * VAST))
    found = re.search(
        r"needs (\S+) GB: up to (\d) checkpoints of (\S+) GB .* model of (\S+) GB",
        caught.value.message,
    )
    assert found, caught.value.message
    needed, count, checkpoint, model = (float(number) for number in found.groups())
    assert (count, needed / VAST, checkpoint / VAST, model / VAST) == (4, 400, 96, 16)


def test_bytes_a_parameter() -> None:
    assert (Optimizer().state_bytes, Optimizer(moment_precision="BF16").state_bytes) == (12, 8)


def test_the_grace_period_of_the_example() -> None:
    write = read_back = 12 * PARAMETERS / 1e9  # at 1 GB/s
    stop = 10 + 1.2 * write
    assert f"{stop + write + read_back:.0f} s and two steps" in PAGE["A stop that can save"]
    assert f"needs {stop:.0f} s of it" in " ".join(PAGE["A stop that can save"].split())


def test_every_message_is_one_of_the_trainer() -> None:
    said = "".join(file.read_text() for file in TREE.glob("trainer_image/**/*.py"))
    messages = [message for cells in rows(PAGE["Permissions"]) for message in code(cells[0])]
    assert len(messages) == 5
    assert [message for message in messages if message not in said] == []
