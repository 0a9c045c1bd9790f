"""The policies for a gang of which not all workers have run yet.

Such a gang waits, however long an image takes to be pulled. It is released if some workers hold
nodes while others cannot start, because two jobs that each hold half of the devices would
otherwise wait for each other for ever. It ends without being counted if a node refuses a pod, if
a pod is lost or asked to stop, or if a worker ends because a peer is not there: none of that is a
fault of the job. A worker's own failure ends it like any other gang.
"""

from datetime import datetime, timedelta

from finetune_api import reasons
from finetune_api.spec import RunPolicy
from finetune_api.status import Attempt, Condition, FineTuneJobStatus
from finetune_operator.plan import nodes
from finetune_operator.plan.attempts import current
from finetune_operator.plan.avoided_nodes import excluded
from finetune_operator.plan.describe import why_waiting
from finetune_operator.plan.observe import Pod
from finetune_operator.plan.outcomes import (
    ENDINGS,
    Cause,
    by_a_node,
    cause_of_exit,
    misses_a_peer,
)
from finetune_operator.plan.stops import StopRequest
from finetune_operator.plan.verdict import (
    Verdict,
    cause_is_awaited,
    from_exit,
    from_failed_pod,
    reason_and_message,
)


def stop_requests(
    policy: RunPolicy, status: FineTuneJobStatus, gang: list[Pod], refused: Condition | None
) -> list[StopRequest]:
    """Request a stop once the first worker has held its node for gangStartTimeoutSeconds.

    `refused` is the condition that says why the API server admits no more pods, for example because
    a quota was used up after some of them had been created.
    """
    attempt, limit = current(status), policy.gang_start_timeout_seconds
    present = [pod for pod in gang if not pod.gone]
    bound = [pod for pod in present if pod.scheduled]
    if unplaced := next((pod for pod in present if pod.unschedulable), None):
        why = f"{unplaced.name} found none: {unplaced.unschedulable}"
    elif refused and not attempt.created:
        why = f"the others could not be created: {refused.message}"
    elif stuck := next((pod for pod in bound if _cannot_start(pod)), None):
        # If every worker waits for its image, none of them waits for another one.
        bound = [pod for pod in bound if not _cannot_start(pod)]
        why = f"{stuck.name} could not start: {_why_not_running(stuck)}"
    else:
        return []
    since = min((pod.scheduled for pod in bound if pod.scheduled), default=None)
    held = f"{len(bound)} of {attempt.workers} workers held a node"
    if since is None and unplaced and (names := excluded(status)):
        since, held = attempt.schedulable_time, "no worker found a node"
        why = f"status.avoidedNodes excludes {', '.join(names)}: {unplaced.unschedulable}"
    if since is None:
        return []
    text = f"{held} for runPolicy.gangStartTimeoutSeconds ({limit} s) while {why}"
    return [StopRequest(reasons.GANG_INCOMPLETE, text, since + timedelta(seconds=limit))]


def _cannot_start(pod: Pod) -> bool:
    """Return whether a node reports that it cannot start a pod, not only that it is slow to."""
    warned = pod.notice is not None and pod.notice[0] not in ("", reasons.PULLING)
    return pod.waiting is not None or warned


def is_complete(attempt: Attempt, gang: list[Pod]) -> bool:
    """Return whether all workers run, or ran together for all that is known.

    A worker may have failed before the others ran, so failures are no proof, but a step is one.
    """
    if attempt.last_step is not None:
        return True
    if sum(1 for pod in gang if pod.running or pod.ended) != attempt.workers:
        return False
    return not any(pod.ended and pod.ended.exit_code != 0 for pod in gang)


def verdict(attempt: Attempt, gang: list[Pod], now: datetime) -> Verdict | None:
    """Return how an attempt ended that was never complete, or None while it may become complete.

    Nothing is saved before the first step, so an end that can no longer be averted is not awaited.
    """
    failed = [(p.ended.finished, p.index, p) for p in gang if p.ended and p.ended.exit_code]
    failures = [pod for _, _, pod in sorted(failed, key=lambda entry: entry[:2])]
    if own := next((pod for pod in failures if _is_own_failure(pod, gang)), None):
        assert own.ended
        return from_exit(own.index, own.ended, gang)
    if broken := next((pod for pod in gang if pod.failure and not pod.gone), None):
        return _from_failed_pod(broken)
    if found := next((pod for pod in gang if _is_interrupted(pod, attempt)), None):
        return _interrupted(found)
    missing = set(range(attempt.workers)) - {pod.index for pod in gang}
    if missing and attempt.created:
        return _vanished(min(missing))
    if not failures or cause_is_awaited(gang, failures[0], now):
        return None
    return _peer_missing(failures[0], attempt, gang)


def _is_own_failure(pod: Pod, gang: list[Pod]) -> bool:
    """Return whether the end of a container has nothing to do with the rest of the gang."""
    assert pod.ended
    if pod.ended.unknown:
        return False
    code, asked = pod.ended.exit_code, any(other.asked_to_stop for other in gang)
    cause = cause_of_exit(code, gang_asked=asked, pod_asked=pod.asked_to_stop)
    return not misses_a_peer(code) and cause not in (Cause.PREEMPTED, Cause.KILLED)


def _is_interrupted(pod: Pod, attempt: Attempt) -> bool:
    """Return whether a pod cannot become a member of a complete gang any more."""
    if pod.ended:
        stopped = pod.ended.exit_code and not misses_a_peer(pod.ended.exit_code)
        return pod.ended.unknown or bool(pod.asked_to_stop and stopped)
    if pod.silent_since and not pod.running:
        return True
    # Until all pods existed, one that is deleted is created again.
    return pod.asked_to_stop and attempt.created


def _from_failed_pod(pod: Pod) -> Verdict:
    reason, message = pod.failure or (reasons.POD_FAILED, "")
    if not by_a_node(reason) and not pod.asked_to_stop:
        return from_failed_pod(pod)
    text = f"worker {pod.index}: pod {nodes.place(pod)} could not start: {message}"[:1024]
    return Verdict(ENDINGS[Cause.REFUSED], reason[:64], text, worker=pod.index, node=pod.node)


def _interrupted(pod: Pod) -> Verdict:
    if silence := nodes.silence(pod):
        why = f"its pod {pod.name} is on {silence}"
    elif pod.ended and pod.ended.unknown:
        why = f"the container of its pod {nodes.place(pod)} is gone"
    else:
        why = f"its pod {nodes.place(pod)} {'vanished' if pod.gone else 'was asked to stop'}"
    text = f"worker {pod.index} was lost before all workers ran: {why}"[:1024]
    return _lost(pod.index, text, pod.node)


def _vanished(index: int) -> Verdict:
    return _lost(index, f"worker {index} was lost before all workers ran: its pod vanished", None)


def _lost(index: int, text: str, node: str | None) -> Verdict:
    ending = ENDINGS[Cause.START_INTERRUPTED]
    return Verdict(ending, ending.reason or "", text, worker=index, node=node)


def _peer_missing(first: Pod, attempt: Attempt, gang: list[Pod]) -> Verdict:
    """Return the verdict on a gang of which a worker gave up; its message is about its peer."""
    assert first.ended
    ending, known = ENDINGS[Cause.PEER_MISSING], {pod.index: pod for pod in gang}
    started = {pod.index for pod in gang if pod.running or pod.ended}
    missing = min(set(range(attempt.workers)) - started, default=None)
    _, message = reason_and_message(first)
    text = f"worker {first.index} ended with exit code {first.ended.exit_code}"
    text += f" ({message[:300]})" if message else ""
    if missing is None:
        text += " before all workers ran"
    elif missing in known:
        text = f"worker {missing} never ran: {_why_not_running(known[missing])}; {text}"
    else:
        text = f"the pod of worker {missing} does not exist; {text}"
    index = first.index if missing is None else missing
    return Verdict(ending, ending.reason or "", text[:1024], worker=index)


def _why_not_running(pod: Pod) -> str:
    """Return what the scheduler or the kubelet says of a pod whose container does not run."""
    if found := why_waiting([pod]):
        return found[1]
    return f"pod {nodes.place(pod)} had not started its container"
