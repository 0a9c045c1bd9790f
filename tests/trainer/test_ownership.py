"""The owner of a run's storage, in prepare pods and at the start of an attempt."""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_api.progress import ForwardPass, StepLedger
from finetune_api.run import PrepareResult, RunConfig
from finetune_api.storage import AttemptFile, RunFile
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.prepare import preparation
from finetune_trainer.run_dir import fence, ownership, records
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer.silent import SilentReporter

pytestmark = pytest.mark.slow  # a preparation for each case

Configure = Callable[..., RunConfig]
STORAGE = "pvc://w/runs/a"
OTHER = "pvc://w/runs/a belongs to another run (job default/job, uid uid-1)"
WAITS = (
    "this job waits until that one has ended: wait, delete that job, or choose another folder for "
    "checkpoints.storage"
)


def run(config: RunConfig) -> PrepareResult:
    return preparation.run(config, SilentReporter())


def refusal(config: RunConfig) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        run(config)
    return caught.value


def owner(config: RunConfig) -> str:
    uid: str = json.loads(RunPaths.of(config).run_file.read_text())["jobUid"]
    return uid


def another(
    configured: Configure, on_existing: str = "Resume", unfinished: list[str] | None = None
) -> RunConfig:
    checkpoints = {"storage": STORAGE, "onExisting": on_existing}
    config = configured(jobUid="uid-2", jobName="another", checkpoints=checkpoints)
    return config.replace(unfinished_owners=unfinished)


def check(
    config: RunConfig,
    digest: str,
    unfinished: list[str] | None = None,
    forward_pass: ForwardPass | None = "Rows",
) -> None:
    """Check as an attempt of a job does, before it claims the fence."""
    mine = RunFile(
        job_uid=config.job_uid,
        job_name=config.job_name,
        job_namespace="default",
        model_revision="",
        run_digest=digest,
        forward_pass=forward_pass,
    )
    ownership.check(RunPaths.of(config), mine, unfinished)


def leave_an_attempt(
    config: RunConfig,
    *,
    outcome: str | None,
    seconds_ago: float,
    reason: str | None = None,
    ended: bool | None = None,
) -> None:
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
        reason=reason,
        run_has_ended=ended,
        ledger=StepLedger(),
    )
    records.write(paths, record)


def test_the_storage_of_another_job_is_refused(configured: Configure) -> None:
    run(configured())
    error = refusal(another(configured, "Refuse"))
    assert (error.code, error.reason) == (73, "StorageOccupied")
    assert error.message == (
        f"{OTHER}; choose another folder for checkpoints.storage, or remove this one, or set "
        "checkpoints.onExisting to Resume to go on where it stopped"
    )


def test_a_run_with_another_digest_cannot_be_resumed(configured: Configure) -> None:
    run(configured())
    config = another(configured)
    config = config.replace(training=config.training.replace(seed=9))
    error = refusal(config)
    assert (error.code, error.reason) == (73, "StorageOccupied")
    assert error.message == (
        f"{OTHER} with another model, data or training, which onExisting Resume cannot continue; "
        "use the model, data and training of that run, or choose another folder for "
        "checkpoints.storage"
    )
    refused = config.replace(checkpoints=config.checkpoints.replace(on_existing="Refuse"))
    assert "onExisting" not in refusal(refused).message
    assert owner(config) == "uid-1"


# What the newest record says, and whether the run may still go on.
ENDED: dict[str, dict[str, Any]] = {
    "succeeded": {"outcome": "Succeeded", "ended": True},
    "failed for good": {"outcome": "Failed", "ended": True},
    "succeeded, recorded by an earlier version": {"outcome": "Succeeded"},
    "failed, recorded by an earlier version": {"outcome": "Failed", "reason": "BadData"},
    "silent": {"outcome": None, "seconds_ago": 200},
}
GOES_ON: dict[str, dict[str, Any]] = {
    "suspended": {"outcome": "Stopped", "ended": False},
    "between two attempts": {"outcome": "Failed", "ended": False},
    "suspended, recorded by an earlier version": {"outcome": "Stopped", "reason": "Stopped"},
    "failed, recorded by an earlier version": {"outcome": "Failed", "reason": "Crashed"},
}


@pytest.mark.parametrize("record", ENDED.values(), ids=ENDED.keys())
def test_a_run_that_ended_or_is_inactive_is_taken_over(
    configured: Configure, record: dict[str, Any]
) -> None:
    first = run(configured())
    leave_an_attempt(configured(), **{"seconds_ago": 1, **record})
    config = another(configured)
    assert run(config).run_digest == first.run_digest
    assert owner(config) == "uid-2"
    assert run(config).run_digest == first.run_digest  # a second prepare pod owns it already
    check(config, first.run_digest)


@pytest.mark.parametrize("record", GOES_ON.values(), ids=GOES_ON.keys())
def test_a_job_owns_its_storage_while_it_may_go_on(
    configured: Configure, record: dict[str, Any]
) -> None:
    run(configured())
    leave_an_attempt(configured(), **record, seconds_ago=7200)
    error = refusal(another(configured))
    assert (error.code, error.reason) == (69, "StorageInUse")
    assert error.message == (
        f"{STORAGE} belongs to job default/job (uid uid-1), whose newest attempt is "
        f"{record['outcome']} and may be followed by another; {WAITS}"
    )
    assert owner(configured()) == "uid-1"
    # The operator knows better: the job was deleted, or failed for good.
    run(another(configured, unfinished=["uid-9"]))
    assert owner(configured()) == "uid-2"


@pytest.mark.parametrize("record", [*ENDED.values(), *GOES_ON.values()], ids=str)
def test_a_job_that_has_not_ended_keeps_its_storage_whatever_it_recorded(
    configured: Configure, record: dict[str, Any]
) -> None:
    run(configured())
    leave_an_attempt(configured(), **{"seconds_ago": 1, **record})
    error = refusal(another(configured, unfinished=["uid-9", "uid-1"]))
    assert (error.code, error.reason) == (69, "StorageInUse")
    assert error.message == (
        f"{STORAGE} belongs to job default/job (uid uid-1), which has not ended; {WAITS}"
    )
    assert owner(configured()) == "uid-1"


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
    for unfinished in (None, []):  # the operator does not say, or does not see that job
        error = refusal(another(configured, unfinished=unfinished))
        assert (error.code, error.reason) == (69, "StorageInUse")
        assert "belongs to job default/job (uid uid-1), which was active 7" in error.message
        assert error.message.endswith(f"s ago; {WAITS}")
        assert owner(configured()) == "uid-1"


def test_a_job_whose_run_was_taken_over_waits_and_then_takes_it_back(
    configured: Configure,
) -> None:
    digest = run(configured()).run_digest
    run(another(configured))
    with pytest.raises(TrainerError) as caught:
        check(configured(), digest, ["uid-2"])
    assert (caught.value.code, caught.value.reason) == (69, "StorageInUse")
    assert caught.value.message == (
        f"{STORAGE} belongs to job default/another (uid uid-2), which has not ended; {WAITS}"
    )
    leave_an_attempt(another(configured), outcome="Stopped", ended=False, seconds_ago=1)
    with pytest.raises(TrainerError, match="newest attempt is Stopped"):
        check(configured(), digest)
    assert owner(configured()) == "uid-2"
    check(configured(), digest, [])
    assert owner(configured()) == "uid-1"


def test_a_job_whose_run_was_replaced_by_another_run_fails(configured: Configure) -> None:
    run(configured())
    run(another(configured))
    with pytest.raises(TrainerError) as caught:
        check(configured(), "another digest", [])
    assert (caught.value.code, caught.value.reason) == (64, "StorageOccupied")
    assert owner(configured()) == "uid-2"


def test_an_attempt_on_an_empty_volume_does_not_restart_the_run(configured: Configure) -> None:
    run(configured())
    paths = RunPaths.of(configured())
    paths.run_file.unlink()
    with pytest.raises(TrainerError) as caught:
        check(configured(), "digest")
    assert caught.value.code == 78
    assert caught.value.message.startswith(
        f"{STORAGE}: run.json is missing; this is not the volume"
    )


def test_a_plan_that_would_pack_the_rows_of_a_model_that_must_not_be_is_refused(
    configured: Configure,
) -> None:
    """As of an operator that does not know the field."""
    config = configured()
    digest = run(config).run_digest
    file = RunPaths.of(config).run_file
    assert RunFile.model_validate_json(file.read_text()).forward_pass == "Rows"
    for recorded, planned in (("Rows", None), (None, "Rows"), ("Document", "Document")):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"forwardPass": recorded}))
        check(config, digest, forward_pass=planned)
    with pytest.raises(TrainerError, match="trained one document at a time") as caught:
        check(config, digest, forward_pass=None)
    assert caught.value.code == 64


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
