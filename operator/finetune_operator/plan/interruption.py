"""The state of a gang that cannot go on, before the verdict on it.

Its message contains no progress: it says how workers ended, which pod is waited for, and by when
the attempt ends at the latest.
"""

from datetime import datetime, timedelta

from finetune_api import reasons
from finetune_api.status import Attempt
from finetune_operator.plan import gang_text, nodes
from finetune_operator.plan.describe import Situation
from finetune_operator.plan.observe import LOST_AFTER, Pod
from finetune_operator.plan.verdict import CAUSE_WAIT, reason_and_message


def situation(attempt: Attempt, gang: list[Pod]) -> Situation | None:
    """Return the situation of a gang of which a pod has failed or is asked to stop, else None."""
    how = gang_text.how_ended(gang)
    alive = [pod for pod in gang if not (pod.ended or pod.failure or pod.gone)]
    asked = [pod for pod in alive if pod.asked_to_stop]
    # Until all pods existed, one that is deleted is created again.
    if not attempt.created or not alive or not (how or asked):
        return None
    silent = gang_text.silent(alive)
    if not how and not silent:
        verb = "was" if len(asked) == 1 else "were"
        text = f"{nodes.places(asked)} {verb} asked to stop; waiting for the gang to save and end"
        return Situation("Restarting", reasons.PREEMPTED, text[:1024])
    reason = reasons.NODE_NOT_READY if silent else _first_reason(gang)
    parts = [*how, f"waiting for the end of {nodes.places(asked or alive)}"]
    if until := _until(asked, gang):
        at = nodes.clock(until)
        parts.append(
            f"attempt {attempt.number} ends at {at} at the latest, and the next one may start then"
        )
    return Situation("Restarting", reason[:64], "; ".join(parts)[:1024])


def _first_reason(gang: list[Pod]) -> str:
    ends = [(pod.ended, pod.index, pod) for pod in gang if pod.ended]
    failures = [(end.finished, index, pod) for end, index, pod in ends if end.exit_code]
    if failures:
        _, _, first = min(failures, key=lambda failure: failure[:2])
        return reason_and_message(first)[0]
    failed = (pod.failure[0] for pod in gang if pod.failure)
    return next(failed, reasons.WORKER_LOST)


def _until(asked: list[Pod], gang: list[Pod]) -> datetime | None:
    """Return when the verdict is given at the latest, if that is known (see verdict.py)."""
    if asked:
        due = [pod.deletion for pod in asked if pod.deletion]
        return max(due) + timedelta(seconds=LOST_AFTER) if len(due) == len(asked) else None
    ends = [pod.ended.finished for pod in gang if pod.ended and pod.ended.exit_code]
    return min(ends) + timedelta(seconds=CAUSE_WAIT) if ends else None
