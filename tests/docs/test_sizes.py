"""The figures and messages of the pages on sizes and storage are those of the code."""

import re
from pathlib import Path

import pytest

from finetune_api.memory import Setting, state_bytes
from finetune_api.run import RunConfig
from finetune_api.spec import Optimizer
from finetune_local.cache import TREE
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.prepare import storage_checks
from finetune_trainer.run_dir.paths import RunPaths
from tests.docs.pages import code, page, rows, sections

SIZES, STORAGE = sections(page("use/sizes")), sections(page("operate/storage"))
PARAMETERS = 8e9  # in the examples of the page
VAST = 1e6  # this many times that fits nowhere


def test_a_run_needs_the_space_that_the_page_names(tmp_path: Path) -> None:
    assert "4 x 96 GB + 16 GB = 400 GB" in " ".join(SIZES["Storage"].split())
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
        storage_checks.check_room(
            paths,
            int(PARAMETERS * VAST),
            config.training,
            config.checkpoints,
            has_validation=True,
            dtype="BF16",
        )
    found = re.search(
        r"needs (\S+) GB: up to (\d) checkpoints of (\S+) GB .* model of (\S+) GB",
        caught.value.message,
    )
    assert found, caught.value.message
    needed, count, checkpoint, model = (float(number) for number in found.groups())
    assert (count, needed / VAST, checkpoint / VAST, model / VAST) == (4, 400, 96, 16)


def test_bytes_per_parameter() -> None:
    assert (Optimizer().state_bytes, Optimizer(moment_precision="BF16").state_bytes) == (12, 8)


def test_the_grace_period_of_the_example() -> None:
    text = " ".join(SIZES["A stop that can save"].split())
    write = read_back = 12 * PARAMETERS / 1e9  # at 1 GB/s
    stop = 10 + 1.2 * write
    assert f"{stop + write + read_back:.0f} s and two steps" in text
    assert f"needs {stop:.0f} s of it" in text


def test_every_message_is_a_message_of_the_trainer() -> None:
    sources = "".join(file.read_text() for file in TREE.glob("trainer_image/**/*.py"))
    messages = [message for cells in rows(STORAGE["Permissions"]) for message in code(cells[0])]
    assert len(messages) == 2
    assert [message for message in messages if message not in sources] == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_device_memory(stage: int) -> None:
    (row,) = [cells for cells in rows(SIZES["Device memory"]) if cells[0].startswith(str(stage))]
    for devices, cell in zip((8, 16), row[2:], strict=True):
        setting = Setting(
            world=devices,
            devices_per_worker=8,
            zero_stage=stage,
            micro_batch_size=1,
            recompute="Never",
            offload="None",
            weight_bytes=2,
            state_bytes=Optimizer().state_bytes,
        )
        size = sum(state_bytes(int(PARAMETERS), setting).values())
        assert cell == f"{size / 1e9:.0f} GB"
