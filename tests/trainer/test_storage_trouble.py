"""Real gangs on storage that is slow, full or too small."""

import json
import os
import re
import stat
import time
from pathlib import Path

import pytest

from finetune_api.run import Result
from tests.trainer import gang
from tests.trainer.conftest import MakeJob

pytestmark = pytest.mark.slow


def test_a_stop_waits_for_a_slow_save(make_job: MakeJob) -> None:
    """Rank 1 cannot write for 22 s, because its file is a pipe without a reader."""
    job = make_job()
    folder = job.storage / "checkpoints/step-00000004-e0001"
    folder.mkdir(parents=True)
    pipe = folder / "rank-00001-of-00002.tmp"
    os.mkfifo(pipe)
    job.start(gang.make_plan())
    while not (folder / "rank-00000-of-00002.safetensors").exists():
        assert job.pods[0].process.poll() is None, job.log
        time.sleep(0.05)
    for pod in job.pods:
        pod.terminate()
    time.sleep(22)
    with pipe.open("rb") as reader:
        reader.read()
    # That save fails, because a pipe is not a file. The save of the stop succeeds.
    assert job.wait(60) == [75, 75], job.log
    assert "checkpoint of step 4 could not be saved (worker 1, rank 1:" in job.log
    saved = job.pods[0].result.checkpoints[0].step
    assert 5 <= saved <= 8  # training continued at most two steps beside the save
    assert not stat.S_ISFIFO((folder.parent / f"step-{saved:08d}-e0001").stat().st_mode)
    assert "deleted the checkpoint of step 4 (pvc://w/runs/a/checkpoints/" in job.log
    assert not folder.exists()  # it would occupy space that the next save needs


def stopped_in_a_save(job: gang.Job, grace: int, *, seconds: float = 0) -> tuple[Result, int]:
    """Stop a job some seconds after its first save began. Returns its result and its last step."""
    job.config["terminationGracePeriodSeconds"] = grace
    job.start(gang.make_plan(totalSteps=10_000))
    while not list((job.storage / "checkpoints").glob(f"*-e{job.attempt:04d}")):
        assert job.pods[0].process.poll() is None, job.log
        time.sleep(0.01)
    time.sleep(seconds)
    job.pods[0].terminate()
    assert job.wait(60) == [75], job.log
    result = job.pods[0].result
    assert result.progress is not None
    return result, result.progress.step


def test_a_stop_waits_for_a_nearly_finished_save_although_a_new_one_would_take_too_long(
    make_job: MakeJob,
) -> None:
    job = make_job(checkpoints={"intervalSteps": 60})
    job.nodes = 1
    job.start(gang.make_plan(totalSteps=10_000))
    job.wait_for_step(2)
    job.pods[0].terminate()
    assert job.wait(60) == [75], job.log
    (manifest,) = (job.storage / "checkpoints").glob("*/MANIFEST.json")
    text = json.loads(manifest.read_text()) | {"writeSeconds": 11.7}  # 1.2 times that is 14.04
    manifest.write_text(json.dumps(text))

    job.slow = 3
    result, step = stopped_in_a_save(job, 14, seconds=0.3)
    assert "saved a checkpoint of step 60 " in job.log
    # That save took three seconds, so there was time to save the current step as well.
    assert result.checkpoints[0].step == step > 60
    assert f"everything up to step {step} is saved" in result.message


def test_no_save_begins_if_the_one_before_it_has_left_too_little_time(make_job: MakeJob) -> None:
    job = make_job(checkpoints={"intervalSteps": 60})
    job.nodes, job.slow = 1, 8
    result, step = stopped_in_a_save(job, 15)
    assert [record.step for record in result.checkpoints] == [60]
    assert result.checkpoints[0].verified
    assert f"no checkpoint of step {step}: a save is expected to take 10 s" in job.log
    assert f"{step - 60} steps after step 60 are not saved; raise runPolicy." in result.message


def test_a_save_that_does_not_end_is_abandoned_in_time(make_job: MakeJob) -> None:
    """No save was measured yet, so one is tried, but the rank leaves before its pod is killed."""
    job = make_job(checkpoints={"intervalSteps": 60})
    job.nodes, job.slow = 1, 60
    result, step = stopped_in_a_save(job, 9)
    assert result.checkpoints == []
    assert f"{step} steps after step 0 are not saved" in result.message
    assert f"no checkpoint of step {step}: it takes too long, and " in job.log


def test_a_full_disk_ends_training_only_at_the_last_step(make_job: MakeJob) -> None:
    job = make_job()
    job.nodes = 1
    (job.storage / "cache").rename(job.claim / "cache")
    job.config["cache"] = "pvc://w/cache"
    run_file = job.claim / "run.json"
    job.storage.joinpath("run.json").rename(run_file)
    job.mount = f"mount -t tmpfs -o size=6m none {job.storage} && cp {run_file} {job.storage}/"
    job.start(gang.make_plan())
    job.wait_for_text("saved a checkpoint of step 4")
    storage = Path(f"/proc/{job.pods[0].process.pid}/root/{job.storage}")
    fill(storage)
    job.wait_for_text("could not be saved")
    fill(storage)  # the room that the failed save has freed
    assert job.wait() == [73], job.log
    assert "Traceback" not in job.log
    assert "No space left on device" in job.log
    assert "training continues" in job.log
    assert "evaluation could not be recorded" in job.log
    result = job.pods[0].result
    assert (result.outcome, result.reason) == ("Failed", "StorageNotWritable")
    assert result.message.startswith(
        "the checkpoint of step 40 could not be saved (worker 0, rank 0: "
    )
    assert "No space left on device (ENOSPC, errno 28" in result.message
    assert result.progress is not None
    assert result.progress.checkpoint_problem == result.message
    assert result.checkpoints[-1].step <= 12
    assert result.checkpoints[-1].verified


def test_a_stop_on_a_full_disk_names_the_reason_in_the_result(make_job: MakeJob) -> None:
    job = make_job(checkpoints={"intervalSteps": 500})
    job.nodes = 1
    run_file = job.claim / "run.json"
    job.storage.joinpath("run.json").rename(run_file)
    (job.storage / "cache").rename(job.claim / "cache")
    job.config["cache"] = "pvc://w/cache"
    job.mount = f"mount -t tmpfs -o size=6m none {job.storage} && cp {run_file} {job.storage}/"
    job.start(gang.make_plan(totalSteps=10_000))
    job.wait_for_step(2)
    fill(Path(f"/proc/{job.pods[0].process.pid}/root/{job.storage}"))
    job.pods[0].terminate()
    assert job.wait() == [73], job.log
    result = job.pods[0].result
    assert result.progress is not None
    problem = result.progress.checkpoint_problem
    assert problem is not None
    assert problem.startswith(f"the checkpoint of step {result.progress.step} could not be saved")
    assert "(worker 0, rank 0: No space left on device (ENOSPC, errno 28" in problem
    assert result.message == problem


def fill(folder: Path) -> None:
    """Write files until no byte is left."""
    for size in (1 << 16, 1):
        with (folder / f"filler-{size}").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_a_volume_that_is_too_small_is_refused_before_devices_are_assigned(
    make_job: MakeJob,
) -> None:
    job = make_job()
    (job.storage / "cache").rename(job.claim / "cache")
    job.config["cache"] = "pvc://w/cache"
    job.mount = f"mount -t tmpfs -o size=3m none {job.storage}"
    assert job.prepare().wait() == 73, job.log
    result = job.pods[0].result
    assert result.reason == "StorageNotWritable"
    found = re.search(
        r"^pvc://w/runs/a: 0.0031\d GB free, but this run needs ([\d.]+) GB: up to 4 checkpoints "
        r"of ([\d.]+) GB at a time and the model of ([\d.]+) GB; make room,",
        result.message,
    )
    assert found, result.message
    needed, checkpoint, model = (float(number) for number in found.groups())
    assert needed == pytest.approx(4 * checkpoint + model + 0.001, rel=0.02)
    assert checkpoint == pytest.approx(
        6 * model, rel=0.02
    )  # 12 bytes per parameter, compared with 2
