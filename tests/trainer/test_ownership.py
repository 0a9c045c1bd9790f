"""The owner of a run's storage, in prepare pods and at the start of an attempt."""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from finetune_api.progress import StepLedger
from finetune_api.run import PrepareResult, RunConfig
from finetune_api.storage import AttemptFile
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.prepare import preparation
from finetune_trainer.run_dir import fence, ownership, records
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer.silent import SilentReporter

Configure = Callable[..., RunConfig]
STORAGE = "pvc://w/runs/a"
OTHER = "pvc://w/runs/a belongs to another run (job default/job, uid uid-1)"


def run(config: RunConfig) -> PrepareResult:
    return preparation.run(config, SilentReporter())


def refusal(config: RunConfig) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        run(config)
    return caught.value


def owner(config: RunConfig) -> str:
    uid: str = json.loads(RunPaths.of(config).run_file.read_text())["jobUid"]
    return uid


def another(configured: Configure, on_existing: str = "Resume") -> RunConfig:
    checkpoints = {"storage": STORAGE, "onExisting": on_existing}
    return configured(jobUid="uid-2", jobName="another", checkpoints=checkpoints)


def leave_an_attempt(config: RunConfig, *, outcome: str | None, seconds_ago: float) -> None:
    """Claim the fence and write a record, as a gang of the first job does."""
    paths = RunPaths.of(config)
    epoch = fence.claim(paths, config.job_uid, 1)
    then = time.time() - seconds_ago
    os.utime(paths.fence(epoch), (then, then))
    moment = datetime.fromtimestamp(then, UTC)
    record = AttemptFile(
        epoch=epoch,
        attempt=1,
        job_uid=config.job_uid,
        start_time=moment,
        update_time=moment,
        outcome=outcome,
        ledger=StepLedger(),
    )
    records.write(paths, record)


def test_the_storage_of_another_job_is_refused(configured: Configure) -> None:
    run(configured())
    error = refusal(another(configured, "Refuse"))
    assert (error.code, error.reason) == (73, "StorageInUse")
    assert error.message == (
        f"{OTHER}; choose another folder for checkpoints.storage, or remove this one, or set "
        "checkpoints.onExisting to Resume to go on where it stopped"
    )


def test_a_run_with_another_digest_cannot_be_resumed(configured: Configure) -> None:
    run(configured())
    config = another(configured)
    config = config.replace(training=config.training.replace(seed=9))
    error = refusal(config)
    assert (error.code, error.reason) == (73, "StorageInUse")
    assert error.message == (
        f"{OTHER} with another model, data or training, which onExisting Resume cannot continue; "
        "use the model, data and training of that run, or choose another folder for "
        "checkpoints.storage"
    )
    refused = config.replace(checkpoints=config.checkpoints.replace(on_existing="Refuse"))
    assert "onExisting" not in refusal(refused).message
    assert owner(config) == "uid-1"


@pytest.mark.parametrize(
    ("outcome", "seconds_ago"), [("Failed", 1), ("Stopped", 1), (None, 200)], ids=str
)
def test_a_run_that_ended_or_is_inactive_is_taken_over(
    configured: Configure, outcome: str | None, seconds_ago: float
) -> None:
    first = run(configured())
    leave_an_attempt(configured(), outcome=outcome, seconds_ago=seconds_ago)
    config = another(configured)
    assert run(config).run_digest == first.run_digest
    assert owner(config) == "uid-2"
    assert run(config).run_digest == first.run_digest  # a second prepare pod owns it already
    ownership.check(RunPaths.of(config), config.job_uid)


def test_a_run_that_never_had_a_gang_is_taken_over(configured: Configure) -> None:
    run(configured())
    run(another(configured))
    assert owner(configured()) == "uid-2"


@pytest.mark.parametrize("recorded", [True, False])
def test_an_active_run_is_not_taken_over(configured: Configure, recorded: bool) -> None:
    run(configured())
    leave_an_attempt(configured(), outcome=None, seconds_ago=70)
    paths = RunPaths.of(configured())
    if not recorded:
        paths.attempt(1).unlink()  # none is written in the first minute
    error = refusal(another(configured))
    assert (error.code, error.reason) == (73, "StorageInUse")
    assert error.message.startswith(f"{OTHER}, which was active 7")
    assert error.message.endswith(
        "s ago; onExisting Resume does not wait: delete or suspend that job, and apply this one "
        "when it has ended"
    )
    assert owner(configured()) == "uid-1"


def test_a_job_whose_storage_was_taken_over_starts_no_attempt(configured: Configure) -> None:
    run(configured())
    run(another(configured))
    with pytest.raises(TrainerError) as caught:
        ownership.check(RunPaths.of(configured()), "uid-1")
    assert (caught.value.code, caught.value.reason) == (64, "StorageInUse")
    assert caught.value.message == (
        f"{STORAGE} belongs to job default/another now (uid uid-2), which continues this run "
        "(onExisting: Resume)"
    )


def test_an_attempt_on_an_empty_volume_does_not_restart_the_run(configured: Configure) -> None:
    run(configured())
    paths = RunPaths.of(configured())
    paths.run_file.unlink()
    with pytest.raises(TrainerError) as caught:
        ownership.check(paths, "uid-1")
    assert caught.value.code == 78
    assert caught.value.message.startswith(
        f"{STORAGE}: run.json is missing; this is not the volume"
    )


def test_a_spec_may_change_before_the_first_attempt(configured: Configure) -> None:
    run(configured())
    config = configured()
    second = run(config.replace(training=config.training.replace(seed=9)))
    text = RunPaths.of(config).run_file.read_text()
    assert json.loads(text)["runDigest"] == second.run_digest


def test_a_spec_changed_after_the_first_attempt_is_refused(configured: Configure) -> None:
    config = configured()
    run(config)
    fence.claim(RunPaths.of(config), config.job_uid, 1)
    error = refusal(config.replace(training=config.training.replace(seed=9)))
    assert error.code == 64
    assert "changed since this run began" in error.message
