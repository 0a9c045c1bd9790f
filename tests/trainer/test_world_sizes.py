"""The number of processes changes during a run, and the losses stay the same.

The model is large enough for ZeRO-3 to keep most of its parameters in slices, as it does with real
ones. Plans change as well: stage, offload and recomputation of activations.
"""

import math
from pathlib import Path

import pytest
import torch

from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.export import model_export
from finetune_trainer.tracking import run_log
from tests.trainer import forked, gang, tiny, weights
from tests.trainer.silent import SilentReporter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
STEPS = 6


def make_job(claim: Path, checkpoint_steps: int) -> gang.Job:
    """Return a job in fp32, so that only the order of summation differs."""
    tiny.make_model(claim / "model", width=512, layers=4)
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(60, 1))
    tiny.write_jsonl(claim / "data/validation.jsonl", tiny.make_messages(4, 2))
    training = {"maxSteps": STEPS, "precision": "FP32"}
    job = gang.make_job(claim, training=training, checkpoints={"intervalSteps": checkpoint_steps})
    assert job.prepare().wait() == 0
    return job


def losses(job: gang.Job) -> list[float]:
    """Return the loss of each step, as the newest attempt that made it logged it."""
    found = [run_log.train_loss(weights.paths_of(job), step) for step in range(1, STEPS + 1)]
    return [math.nan if loss is None else loss for loss in found]


def newest(job: gang.Job) -> Manifest:
    found = store.newest_valid(weights.paths_of(job), job.config["runDigest"])
    assert found is not None
    return found[1]


def test_four_then_two_then_three_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """12 rows per step. Each gang but the last is killed in the middle of a save."""
    alone, changing = make_job(tmp_path / "alone", STEPS), make_job(tmp_path / "changing", 1)

    def plan(stage: int, **changes: object) -> gang.Plan:
        return gang.make_plan(zeroStage=stage, globalBatchSize=12, totalSteps=STEPS, **changes)

    codes, log = forked.attempt(alone, 1, plan(1))
    assert codes == [0], log
    offloaded = {"offload": "OptimizerAndParameters", "activationCheckpointing": "Always"}
    reached = []
    for world, its_plan in ((4, plan(3)), (2, plan(3, **offloaded))):
        codes, log = forked.attempt(changing, world, its_plan, victim=world - 1, moment=600)
        assert codes[-1] == 137, log
        reached.append(newest(changing).step)
    codes, log = forked.attempt(changing, 3, plan(2))
    assert codes == [0, 0, 0], log
    assert 1 <= reached[0] < reached[1] < STEPS
    assert losses(changing) == pytest.approx(losses(alone), abs=1e-4)
    assert_export_is_rounded(changing)


def assert_export_is_rounded(job: gang.Job) -> None:
    """Export a trained job, and compare the model with its last master weights."""
    values = job.config | {"role": "worker", "mounts": {"w": str(job.claim)}}
    config = RunConfig.model_validate(values | {"attempt": job.attempt})
    epoch = newest(job).fence_epoch
    model_export.run(config, weights.paths_of(job), SilentReporter(), epoch, STEPS)
    exported = weights.final(job)
    for name, master in weights.masters(job).items():
        assert torch.equal(exported[name].flatten(), master.to(torch.bfloat16)), name
