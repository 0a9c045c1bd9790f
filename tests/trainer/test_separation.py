"""A run does not write among the files of its model and data."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.prepare import preparation
from tests.trainer.silent import SilentReporter

Configure = Callable[..., RunConfig]


@pytest.fixture
def links(claim: Path) -> Path:
    """A claim with links: a second name of the data, and a run's folder that is in the model."""
    (claim / "alias").symlink_to(claim / "data")
    (claim / "runs").mkdir()
    (claim / "runs" / "linked").symlink_to(claim / "model")
    return claim


def tree(claim: Path) -> list[str]:
    return sorted(str(path) for path in claim.rglob("*"))


MODEL, TRAIN = "model.source pvc://w/model", "dataset.train pvc://w/data/train.jsonl"
# storage, changes -> the middle of the message
REFUSED: dict[str, tuple[str, dict[str, object], str]] = {
    "is the model": ("pvc://w/model", {}, f"is the same folder as {MODEL}"),
    "below the model": ("pvc://w/model/runs/a", {}, f"is in {MODEL}"),
    "the folder of a file": ("pvc://w/data", {}, f"contains {TRAIN}"),
    "by a link": ("pvc://w/alias", {}, f"contains {TRAIN}"),
    "below a link": ("pvc://w/runs/linked/x", {}, f"is in {MODEL}"),
    "another claim that is the same volume": ("pvc://v/model/a", {}, f"is in {MODEL}"),
    "the data folder": (
        "pvc://w/data",
        {"dataset": {"train": [{"source": "pvc://w/data"}]}},
        "is the same folder as dataset.train pvc://w/data (links are resolved), so the run would "
        "write among your files; choose another folder",
    ),
    "below the data folder": (
        "pvc://w/data/a/b",
        {"dataset": {"train": [{"source": "pvc://w/data/"}]}},
        "is in dataset.train pvc://w/data/",
    ),
    "where a glob matches": (
        "pvc://w/runs/a",
        {"dataset": {"train": [{"source": "pvc://w/**/train.jsonl"}]}},
        "is in dataset.train pvc://w/**/train.jsonl",
    ),
    "validation": (
        "pvc://w/data",
        {
            "dataset": {
                "train": [{"source": "hf://a/b"}],
                "validation": [{"source": "pvc://w/data/*.jsonl"}],
            }
        },
        "is the same folder as dataset.validation pvc://w/data/*.jsonl",
    ),
}


@pytest.mark.parametrize(("storage", "changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_storage_among_the_inputs_is_refused_before_anything_is_written(
    configured: Configure, links: Path, storage: str, changes: dict[str, object], message: str
) -> None:
    before = tree(links)
    config = configured(
        **changes,
        checkpoints={"storage": storage},
        mounts={"w": str(links), "v": str(links)},
    )
    with pytest.raises(TrainerError) as caught:
        preparation.run(config, SilentReporter())
    assert (caught.value.code, caught.value.reason) == (64, "BadConfiguration")
    assert f"checkpoints.storage {storage} {message}" in caught.value.message
    assert tree(links) == before


def test_a_cache_among_the_inputs_is_refused(configured: Configure, links: Path) -> None:
    config = configured(cache="pvc://w/model/cache")
    with pytest.raises(TrainerError, match=f"the cache pvc://w/model/cache is in {MODEL}"):
        preparation.run(config, SilentReporter())


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoints": {"storage": "pvc://w/data/runs/a"}},  # beside the files that are used
        {"dataset": {"train": [{"source": "pvc://w/data/*.jsonl"}]}},
        {"cache": "pvc://w/downloads", "model": {"source": "pvc://w/downloads/models/x"}},
    ],
    ids=["beside a file", "a glob of another folder", "a model in the cache"],
)
def test_storage_beside_the_inputs_is_used(
    configured: Configure, links: Path, changes: dict[str, object]
) -> None:
    os.makedirs(links / "downloads/models")
    (links / "downloads/models/x").symlink_to(links / "model")
    assert preparation.run(configured(**changes), SilentReporter()).run_digest
