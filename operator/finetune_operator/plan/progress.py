"""What pods say about their work, taken over into the status."""

from finetune_api.run import Report, Result
from finetune_api.status import FineTuneJobStatus


def merge(status: FineTuneJobStatus, said: Report | Result | None) -> FineTuneJobStatus:
    """Progress, evaluation and checkpoints as worker 0 told them last."""
    if said is None:
        return status
    # An empty list is a worker that has not looked yet, not a storage without checkpoints.
    checkpoints = said.checkpoints or status.checkpoints
    verified = [checkpoint for checkpoint in checkpoints if checkpoint.verified]
    newest = max(verified, key=lambda c: c.step, default=status.latest_checkpoint)
    status = status.replace(
        progress=said.progress or status.progress,
        evaluation=said.evaluation or status.evaluation,
        checkpoints=checkpoints,
        latest_checkpoint=newest,
    )
    if newest and status.last_failure_step is not None and newest.step > status.last_failure_step:
        # The place that failed lies behind a checkpoint now: the failures before it are forgiven.
        status = status.replace(counted_restarts=0, last_failure_step=None)
    return status
