"""The records of earlier attempts, as a later one reports them."""

from datetime import UTC, datetime
from pathlib import Path

from finetune_api.progress import StepLedger
from finetune_api.storage import AttemptFile
from finetune_trainer.pod.state import PodState
from finetune_trainer.pod.supervisor import AttemptRecordWriter
from finetune_trainer.run_dir import records
from tests.trainer.checkpoints import make_paths


def test_a_record_that_still_grows_is_read_again(tmp_path: Path) -> None:
    """The pod of the first attempt is on a node that was cut off, and goes on."""
    paths, now = make_paths(tmp_path), datetime.now(UTC)
    paths.attempts.mkdir(parents=True, exist_ok=True)

    def first(step: int) -> None:
        ledger = StepLedger(productive_seconds=step, highest_step=step)
        records.write(
            paths,
            AttemptFile(
                epoch=1, attempt=1, job_uid="u", start_time=now, update_time=now, ledger=ledger
            ),
        )

    state = PodState("u", 2, "worker", 0)
    writer = AttemptRecordWriter(paths, 2, now, state)
    first(48)
    writer.refresh(writer.written + 61)
    assert [record.ledger.highest_step for record in state.report().earlier_attempts] == [48]
    first(60)
    writer.refresh(writer.written + 30)
    assert state.report().earlier_attempts[0].ledger.highest_step == 48
    writer.refresh(writer.written + 61)
    assert state.report().earlier_attempts[0].ledger.highest_step == 60
