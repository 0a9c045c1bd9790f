"""Interrupted and resumed, a run ends with the very weights of one that was left alone."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer import tiny
from tests.trainer.gang import Job, make_job, make_plan

pytestmark = pytest.mark.slow
STEPS = 60


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A claim with a model and data, prepared once."""
    claim = tmp_path_factory.mktemp("claim")
    tiny.make_model(claim / "model")
    tiny.write_jsonl(claim / "data" / "train.jsonl", tiny.make_messages(300))
    tiny.write_jsonl(claim / "data" / "validation.jsonl", tiny.make_messages(20, seed=1))
    job = make_claim_job(claim)
    assert job.prepare().wait() == 0
    (claim / "digests").write_text(
        "\n".join([job.config["preparedDigest"], job.config["runDigest"]])
    )
    return claim


def make_claim_job(claim: Path, interval: int = 10) -> Job:
    return make_job(claim, training={"maxSteps": STEPS}, checkpoints={"intervalSteps": interval})


@pytest.fixture
def job(prepared: Path, tmp_path: Path):
    """A fresh copy of the prepared claim, its job ready for the first attempt."""
    claim = tmp_path / "claim"
    shutil.copytree(prepared, claim)
    job = make_claim_job(claim)
    data, run = (claim / "digests").read_text().split()
    job.config |= {"preparedDigest": data, "runDigest": run}
    yield job
    job.kill()


def plan(stage: int, **changes):
    return make_plan(zeroStage=stage, totalSteps=STEPS, warmupSteps=5, **changes)


def final(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.storage / "final" / "model.safetensors")


_UNDISTURBED: dict[int, dict[str, torch.Tensor]] = {}


def undisturbed(job: Job, stage: int) -> dict[str, torch.Tensor]:
    """Weights of a run of that stage that nothing happened to; trained once."""
    if stage not in _UNDISTURBED:
        calm = Job(job.claim.parent / "calm", job.config)
        shutil.copytree(job.claim, calm.claim)
        calm.start(plan(stage))
        assert calm.wait() == [0, 0], calm.pods[0].log.read_text()[-3000:]
        _UNDISTURBED[stage] = final(calm)
    return _UNDISTURBED[stage]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert different == []


def steps(job: Job) -> list[int]:
    folder = job.storage / "checkpoints"
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stopped_gang_saves_and_resumes_bit_identical(job: Job, stage: int):
    expected = undisturbed(job, stage)
    job.start(plan(stage))
    job.wait_for_step(25)
    job.pods[1].terminate()  # one of them is enough: all agree
    assert job.wait() == [75, 75]
    stopped = job.pods[0].result.progress.step
    assert stopped in steps(job)
    assert job.pods[0].result.checkpoints[0].verified
    job.start(plan(stage), highest_step=stopped)
    assert job.wait() == [0, 0], job.pods[0].log.read_text()[-3000:]
    assert job.pods[0].result.ledger.first_step == stopped
    assert job.pods[0].result.ledger.redone_seconds == 0
    assert_equal(final(job), expected)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_killed_rank_ends_the_gang_which_resumes_bit_identical(job: Job, stage: int):
    expected = undisturbed(job, stage)
    job.start(plan(stage))
    job.wait_for_step(25)
    os.kill(job.pods[1].ranks[0], signal.SIGKILL)
    assert job.wait() == [88, 137]
    assert "SIGKILL" in job.pods[1].result.message
    reached = job.pods[0].result.ledger.highest_step
    job.start(plan(stage), highest_step=reached)
    assert job.wait() == [0, 0], job.pods[0].log.read_text()[-3000:]
    ledger = job.pods[0].result.ledger
    assert ledger.first_step == reached // 10 * 10
    assert ledger.redone_seconds > 0 or reached % 10 == 0
    assert_equal(final(job), expected)


def test_another_stage_and_world_size_continue_from_the_same_files(job: Job):
    expected = undisturbed(job, 2)
    job.start(plan(2))
    job.wait_for_step(25)
    job.pods[0].terminate()
    assert job.wait() == [75, 75]
    job.nodes = 1
    job.start(plan(3, gradientAccumulationSteps=4))
    assert job.wait() == [0], job.pods[0].log.read_text()[-3000:]
    for name, tensor in final(job).items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-2, rtol=2e-2)


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (damage_flip, "rank-00001-of-00002.safetensors"),
        (damage_truncate, "rank-00000-of-00002.safetensors"),
        (Path.unlink, "rank-00001-of-00002.safetensors"),
        (damage_truncate, "MANIFEST.json"),
    ],
    ids=["flipped", "truncated", "missing", "manifest"],
)
def test_a_damaged_checkpoint_is_passed_over_and_said(job: Job, damage, file: str):
    expected = undisturbed(job, 2)
    job.start(plan(2))
    job.wait_for_step(34)
    os.kill(job.pods[0].ranks[0], signal.SIGKILL)
    job.wait()
    newest = max((job.storage / "checkpoints").iterdir())
    damage(newest / file)
    job.start(plan(2))
    assert job.wait() == [0, 0], job.pods[0].log.read_text()[-3000:]
    assert newest.name in job.pods[0].log.read_text()
    before = int(newest.name.split("-")[1]) - 10
    assert job.pods[0].result.ledger.first_step == before
    assert_equal(final(job), expected)


def test_a_newer_attempt_fences_the_older_one_out(job: Job):
    old = job.start(plan(2))
    job.wait_for_step(5)
    (job.storage / "fence.9").write_text('{"epoch": 9, "jobUid": "uid-1", "attempt": 7}')
    assert 79 in [pod.wait() for pod in old]
    job.start(plan(2))  # attempt 2, older than 7
    assert job.wait()[0] == 79


def test_the_finished_model_ends_a_new_attempt_at_once(job: Job):
    job.start(plan(2))
    assert job.wait() == [0, 0]
    job.start(plan(2))
    assert job.wait(30) == [0, 0]
    assert job.pods[0].result.output.verified
    assert job.prepare().result.prepared.finished.verified
