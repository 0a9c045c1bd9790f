"""The number of processes changes during a run, and the losses stay the same."""

import math
from pathlib import Path

import pytest

from finetune_trainer.checkpoint import store
from finetune_trainer.tracking import run_log
from tests.trainer import forked, gang, tiny, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 24


def make_job(claim: Path) -> gang.Job:
    """Return a job in fp32, so that only the order of summation differs."""
    tiny.make_model(claim / "model")
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(60, 1))
    tiny.write_jsonl(claim / "data/validation.jsonl", tiny.make_messages(4, 2))
    training = {"maxSteps": STEPS, "precision": "FP32"}
    job = gang.make_job(claim, training=training, checkpoints={"intervalSteps": 1})
    assert job.prepare().wait() == 0
    return job


def losses(job: gang.Job) -> list[float]:
    """Return the loss of each step, as the newest attempt that made it logged it."""
    found = [run_log.train_loss(weights.paths_of(job), step) for step in range(1, STEPS + 1)]
    return [math.nan if loss is None else loss for loss in found]


def newest(job: gang.Job) -> int:
    found = store.newest_valid(weights.paths_of(job), job.config["runDigest"])
    assert found is not None
    return found[1].step


def test_four_then_two_then_three_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """12 rows per step. Each gang but the last is killed in the middle of a save."""
    alone, changing = make_job(tmp_path / "alone"), make_job(tmp_path / "changing")

    def plan(stage: int) -> gang.Plan:
        return gang.make_plan(zeroStage=stage, globalBatchSize=12, totalSteps=STEPS)

    codes, log = forked.attempt(alone, 1, plan(1))
    assert codes == [0], log
    reached = []
    for world, stage in ((4, 1), (2, 3)):
        codes, log = forked.attempt(changing, world, plan(stage), victim=world - 1, moment=600)
        assert codes[-1] == 137, log
        reached.append(newest(changing))
    codes, log = forked.attempt(changing, 3, plan(2))
    assert codes == [0, 0, 0], log
    assert 1 <= reached[0] < reached[1] < STEPS
    assert losses(changing) == pytest.approx(losses(alone), abs=1e-4)
