"""The policy that all workers of an attempt have one configuration.

Some fields of the spec can change at any time, and the pods of a gang are not all created at once.
Ranks with different intervals of evaluations or checkpoints would wait for each other for ever. So
a digest of the configuration is written with the commit. If the spec no longer leads to that
digest while pods are missing, a new digest is written as long as there are no pods; otherwise the
gang is stopped, and the next attempt has the new configuration.
"""

from finetune_api import reasons
from finetune_api.status import Attempt, FineTuneJobStatus
from finetune_operator.plan import attempts, run_config
from finetune_operator.plan.observe import Job, Pod
from finetune_operator.plan.stops import StopRequest

_EDITED = "the job was edited while its pods were being created; they are created again"


def frozen(job: Job) -> FineTuneJobStatus:
    """Return the status with the digest of what the newest attempt's pods are created with."""
    attempt = attempts.current(job.status).replace(config_digest=_digest(job))
    return job.status.replace(attempts=[*job.status.attempts[:-1], attempt])


def changed(job: Job) -> bool:
    """Return whether a pod created now would not have the configuration of the newest attempt."""
    attempt = attempts.current(job.status)
    # Earlier operators did not write a digest.
    return attempt.config_digest is not None and attempt.config_digest != _digest(job)


def stop_requests(job: Job, attempt: Attempt, gang: list[Pod]) -> list[StopRequest]:
    """Request a stop of a gang whose pods differ, or would differ once the others are created."""
    pods = [pod for pod in gang if not pod.gone]
    others = [pod for pod in pods if pod.config not in (None, attempt.config_digest)]
    differs = attempt.config_digest is not None and bool(others)
    if differs or (pods and not attempt.created and changed(job)):
        return [StopRequest(reasons.CONFIGURATION_CHANGED, _EDITED)]
    return []


def _digest(job: Job) -> str:
    highest = attempts.highest_step(job.status, before=attempts.current(job.status).number)
    return run_config.digest(run_config.for_workers(job, highest))
