"""Gangs that are killed, stopped or diverge, and the attempts after them."""

import os
import re
import signal
import time
from collections.abc import Callable

import pytest
import torch

from finetune_api.storage import AttemptFile
from finetune_trainer.checkpoint import store
from finetune_trainer.run_dir import fence
from tests.trainer import forked, gang, tiny, weights
from tests.trainer.checkpoints import flip_a_byte
from tests.trainer.conftest import MakeJob
from tests.trainer.preloaded import nursery

pytestmark = pytest.mark.slow
Undisturbed = Callable[[int], gang.Job]


def newest_step(job: gang.Job) -> int:
    marks = (job.storage / "checkpoints").glob("*/VERIFIED")
    return max(int(mark.parent.name.split("-")[1]) for mark in marks)


def record_of(job: gang.Job, epoch: int) -> AttemptFile:
    text = (job.storage / f"attempts/{epoch}.json").read_text()
    return AttemptFile.model_validate_json(text)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_killed_then_stopped_then_damaged_run_is_bit_identical(
    stage: int, make_job: MakeJob, undisturbed: Undisturbed
) -> None:
    """Three attempts of one job give the same result as an undisturbed run."""
    job, plan = make_job(), gang.make_plan(zeroStage=stage)

    # A rank is killed: its pod reports the signal, and the other pod soon reports a lost peer.
    job.start(plan)
    job.wait_for_text("saved a checkpoint of step 4")
    os.kill(job.pods[1].ranks[0], signal.SIGKILL)
    assert job.wait(60) == [88, 137], job.log
    assert "Traceback" not in job.log
    first, second = (pod.result for pod in job.pods)
    assert (second.outcome, second.reason) == ("Failed", "Crashed")
    assert second.message == "rank 1 ended with signal SIGKILL"
    assert (first.outcome, first.reason) == ("Failed", "PeerLost")
    assert first.progress is not None
    reached = first.progress.step

    # The gang is stopped: it saves its current step, independently of the interval.
    job.start(plan, highest_step=reached)
    job.wait_for_step(reached + 4)
    for pod in job.pods:
        pod.terminate()
        pod.terminate()  # a second signal changes nothing
    assert job.wait(60) == [75, 75], job.log
    resumed = re.search(r"resumed from checkpoint step-0*(\d+)-e0001", job.log)
    assert resumed, job.log
    begun = int(resumed[1])
    assert 4 <= begun <= reached
    for pod in job.pods:
        assert (pod.result.outcome, pod.result.reason) == ("Stopped", "Stopped")
    stopped = job.pods[0].result
    assert stopped.progress is not None
    step = stopped.progress.step
    assert newest_step(job) == step > reached
    assert stopped.checkpoints[0].step == step
    assert stopped.checkpoints[0].verified
    record = record_of(job, 2)
    assert (record.outcome, record.ledger.first_step) == ("Stopped", begun)
    assert (record.ledger.redone_seconds > 0) == (reached > begun)
    assert record.ledger.productive_seconds > 0

    # Its newest checkpoint is damaged: the one before it is used, and the damage is logged.
    newest = next((job.storage / "checkpoints").glob(f"step-{step:08d}-*"))
    flip_a_byte(newest / "rank-00000-of-00002.safetensors")
    job.start(plan, highest_step=step)
    assert job.wait() == [0, 0], job.log
    assert f"checkpoint {newest.name}/rank-00000-of-00002.safetensors does not match" in job.log
    assert record_of(job, 3).ledger.first_step == stopped.checkpoints[1].step
    weights.assert_same_run(job, undisturbed(stage))


def test_a_run_resumes_with_another_stage_and_world_size(
    make_job: MakeJob, undisturbed: Undisturbed
) -> None:
    job = make_job()
    job.start(gang.make_plan(zeroStage=3))
    job.wait_for_step(4)
    for pod in job.pods:
        pod.terminate()
    assert job.wait(60) == [75, 75], job.log
    job.nodes = 1
    job.start(gang.make_plan(zeroStage=1, microBatchSize=2))
    assert job.wait() == [0], job.log
    mine, theirs = (run.pods[0].result.evaluation for run in (job, undisturbed(3)))
    assert mine is not None
    assert theirs is not None
    assert mine.last == pytest.approx(theirs.last, abs=0.01)
    assert mine.baseline == theirs.baseline  # measured once, before the first step of the run
    exported = weights.final(job)
    for name, master in weights.masters(job).items():
        assert torch.equal(exported[name].flatten(), master.to(torch.bfloat16))


def test_a_stop_does_not_wait_for_a_peer_that_never_started(make_job: MakeJob) -> None:
    job = make_job()
    (pod,) = job.start(gang.make_plan(), only=[0])
    deadline = time.monotonic() + 60
    while not gang.listens(pod.address, 29500):
        assert time.monotonic() < deadline, job.log
        time.sleep(0.05)
    pod.terminate()
    assert pod.wait(60) == 75
    assert "nothing is lost" in pod.result.message


def test_a_stop_does_not_wait_for_a_peer_that_hangs(make_job: MakeJob) -> None:
    job = make_job()
    job.config["checkpoints"]["intervalSteps"] = 30  # a hang during a save would be waited for
    job.start(gang.make_plan(totalSteps=1000))
    job.wait_for_text("saved a checkpoint of step 30")
    (rank,) = job.pods[1].ranks
    os.kill(rank, signal.SIGSTOP)
    for pod in job.pods:
        pod.terminate()
    assert job.wait(100) == [88, 88], job.log
    # The other pod may lose its peer a moment before it reports the same reason.
    reason = "no step was finished after SIGTERM"
    assert any(reason in pod.result.message for pod in job.pods)
    assert newest_step(job) >= 30


def test_a_diverged_run_ends_with_advice_and_without_checkpoints(make_job: MakeJob) -> None:
    job = make_job()
    job.nodes = 1
    job.config["checkpoints"]["intervalSteps"] = 1
    job.start(gang.make_plan(learningRate=1e30, warmupSteps=0))
    assert job.wait() == [86], job.log
    # The first step destroys the weights, which only the next step shows. Its checkpoint may be
    # complete by then, and is marked as diverged.
    assert list(store.published(weights.paths_of(job))) == []
    assert "checkpoint of step 2" not in job.log
    result = job.pods[0].result
    assert (result.outcome, result.reason) == ("Failed", "Diverged")
    assert "gradients were not finite in 3 steps up to step 4; lower" in result.message
    assert result.progress is not None
    assert result.progress.skipped_steps == 2
    assert result.checkpoints == []  # none can be resumed from
    assert result.progress.grad_norm is None  # JSON has no NaN

    job.start(gang.make_plan(), highest_step=4)
    job.wait_for_text("although step 4 was reached: training begins again at the first step")
    job.kill()


def test_a_manifest_that_is_written_during_divergence_is_marked(make_job: MakeJob) -> None:
    """A thread may be writing the manifest of unusable weights while the divergence is found."""
    job = make_job()
    job.config["checkpoints"]["intervalSteps"] = 1
    plan = gang.make_plan(learningRate=1e30, warmupSteps=0)
    codes, log = forked.attempt(job, 1, plan, late=1.0)
    assert codes == [86], log
    (folder,) = (job.storage / "checkpoints").iterdir()
    assert (folder / store.MANIFEST).exists()
    assert "checkpoint step-00000001-e0001 holds weights with which the run diverged" in log
    assert list(store.published(weights.paths_of(job))) == []


def test_no_rank_of_a_diverged_run_leaves_before_its_checkpoints_are_marked(
    make_job: MakeJob,
) -> None:
    """When one rank has left, the others end soon, and then the next attempt begins."""
    job = make_job()
    job.config["checkpoints"]["intervalSteps"] = 1
    plan = gang.make_plan(learningRate=1e30, warmupSteps=0)
    (first, second), log = forked.start(job, 2, plan, late=1.0)
    assert nursery().wait(second) == 86, log.read_text()
    (folder,) = (job.storage / "checkpoints").iterdir()
    assert (folder / store.MANIFEST).exists()
    assert (folder / store.DIVERGED).exists()
    assert nursery().wait(first) == 86, log.read_text()


def test_rank_0_has_time_to_flush_its_log_after_another_rank_has_left(make_job: MakeJob) -> None:
    """Its log of steps is a pipe without a reader, so flushing takes as long as it may."""
    job = make_job()
    job.nodes, job.devices = 1, 2
    (job.storage / "log").mkdir()
    os.mkfifo(job.storage / "log/1.jsonl")
    job.start(gang.make_plan(totalSteps=1000))
    job.wait_for_step(2)
    job.pods[0].terminate()
    assert job.wait(60) == [75], job.log
    assert "the log of steps did not finish in time; its last points are lost" in job.log


def test_a_stop_at_any_moment_loses_no_work(make_job: MakeJob, undisturbed: Undisturbed) -> None:
    job, plan = make_job(), gang.make_plan()

    # Before the first step, nothing can be saved, and no rank waits for its peers.
    job.start(plan)
    for pod in job.pods:
        pod.wait_for_children()
    for pod in job.pods:
        pod.terminate()
    assert job.wait(60) == [75, 75], job.log
    assert job.pods[0].result.reason == "Stopped"
    assert "nothing is lost" in job.pods[0].result.message
    assert record_of(job, 1).outcome == "Stopped"

    # While the model is exported, training is over, and the next attempt repeats the export.
    job.executed = True  # so that the export takes long enough to interrupt it
    job.start(plan)
    job.wait_for_text("saved a checkpoint of step 40")
    job.pods[1].wait()
    while job.pods[0].ranks:
        time.sleep(0.01)
    job.pods[0].terminate()
    assert job.wait(60) == [75, 0], job.log
    assert "export was stopped; nothing is lost" in job.pods[0].result.message
    assert not (job.storage / "final/export.json").exists()
    job.executed = False
    job.start(plan)
    assert job.wait() == [0, 0], job.log
    assert "] step " not in job.log
    weights.assert_same_run(job, undisturbed(2))

    # A finished run is not repeated, neither by an attempt nor by a prepare pod.
    job.start(plan)
    assert job.wait(60) == [0, 0], job.log
    result = job.pods[0].result
    assert result.outcome == "Succeeded"
    assert result.output is not None
    assert "rank 0" not in job.log
    prepared = job.prepare().result.prepared
    assert prepared is not None
    assert prepared.finished == result.output


def test_a_stopped_preparation_is_repeated(make_job: MakeJob) -> None:
    job = make_job()
    tiny.write_jsonl(job.claim / "data/train.jsonl", tiny.make_messages(20_000, 4))
    pod = job.start_prepare()
    job.wait_for_text("line 3")
    prepared_data = job.storage / "cache/prepared"
    assert list(prepared_data.glob(".building-uid-1-*"))
    pod.terminate()
    assert pod.wait(60) == 75
    assert pod.result.outcome == "Stopped"
    assert list(prepared_data.glob(".building-*"))  # the next pod uses it if the data is the same
    (
        prepared_data / ".building-uid-1-killed"
    ).mkdir()  # left by an earlier pod of this job that was killed
    tiny.write_jsonl(job.claim / "data/train.jsonl", tiny.make_messages(30, 5))
    prepared = job.prepare().result.prepared
    assert prepared is not None
    assert prepared.data.examples == 30
    assert not list(prepared_data.glob(".building-*"))


def test_a_newer_attempt_fences_the_older_one(make_job: MakeJob) -> None:
    job = make_job()
    job.start(gang.make_plan())
    job.wait_for_step(2)
    fence.claim(weights.paths_of(job), "uid-1", 2)
    first, second = job.wait(60)
    # The other pod may see the fence, or only the loss of its peer.
    assert first == 79, job.log
    assert second in (79, 88), job.log
    assert job.pods[0].result.reason == "Fenced"
    assert "attempt 2 owns the storage" in job.pods[0].result.message
    # The old attempt starts again: it is fenced before any rank starts.
    job.attempt = 0
    job.nodes = 1
    job.start(gang.make_plan())
    assert job.wait(60) == [79]
    assert "rank" not in job.log


def test_a_failed_save_ends_training_only_at_the_last_step(make_job: MakeJob) -> None:
    job = make_job()
    job.nodes = 1
    for step in (8, 40):
        (job.storage / "checkpoints").mkdir(exist_ok=True)
        (job.storage / f"checkpoints/step-{step:08d}-e0001").write_text("not a folder")
    job.start(gang.make_plan())
    assert job.wait() == [73], job.log
    assert (
        "checkpoint of step 8 could not be saved (worker 0, rank 0: File exists (EEXIST, errno 17"
        in job.log
    )
    assert "training continues" in job.log
    result = job.pods[0].result
    assert (result.outcome, result.reason) == ("Failed", "StorageNotWritable")
    assert result.message.startswith("the checkpoint of step 40 could not be saved (")
    assert [record.step for record in result.checkpoints] == [36, 32]
    assert not (job.storage / "final").exists()


def test_a_pod_with_two_ranks_reports_the_one_that_was_killed(make_job: MakeJob) -> None:
    job = make_job()
    job.nodes, job.devices = 1, 2
    job.start(gang.make_plan())
    job.wait_for_step(2)
    os.kill(job.pods[0].ranks[1], signal.SIGKILL)
    assert job.wait(60) == [137], job.log
    assert job.pods[0].result.message == "rank 1 ended with signal SIGKILL"


def test_storage_that_cannot_be_written_is_reported_before_ranks_start(make_job: MakeJob) -> None:
    job = make_job()
    job.nodes = 1
    job.config["checkpoints"]["storage"] = "pvc://w/data/train.jsonl"
    job.start(gang.make_plan())
    assert job.wait(60) == [73]
    assert "pvc://w/data/train.jsonl: " in job.pods[0].result.message
