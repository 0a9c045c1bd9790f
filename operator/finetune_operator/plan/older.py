"""What an operator of an earlier version did not write yet is read as it was meant then."""

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Attempt, FineTuneJobStatus


def completed(status: FineTuneJobStatus, spec: FineTuneJobSpec) -> FineTuneJobStatus:
    """Attempts of before their size was written: the spec's, which could not change then."""
    if all("workers" in attempt.model_fields_set for attempt in status.attempts):
        return status
    return status.replace(attempts=[_completed(a, status, spec) for a in status.attempts])


def _completed(attempt: Attempt, status: FineTuneJobStatus, spec: FineTuneJobSpec) -> Attempt:
    if "workers" in attempt.model_fields_set:
        return attempt
    runs = attempt.number == status.attempt and status.phase == "Running"
    began = max(attempt.start_time, status.start_time or attempt.start_time) if runs else None
    return attempt.replace(
        workers=spec.workers.replicas,
        devices_per_worker=spec.workers.devices_per_worker,
        running_time=began,
    )
