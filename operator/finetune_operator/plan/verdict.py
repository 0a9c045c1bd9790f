"""The verdict on a gang: which row of `outcomes.py` applies to it.

The cause is the first exit that is not a consequence of another one (79 Fenced, 88 PeerLost). Ties
are broken by worker index, because the clocks of nodes differ and times have whole seconds.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_api import names, reasons
from finetune_api.exit_codes import ExitCode, is_permanent, meaning
from finetune_operator.plan import nodes
from finetune_operator.plan.observe import LOST_AFTER, Pod, termination_result
from finetune_operator.plan.outcomes import ENDINGS, Cause, Ending, Outcome, cause_of_exit
from finetune_operator.plan.pod_status import Ended

_SIGKILL = 128 + 9
CAUSE_WAIT = 15.0
"""Seconds for which an exit that is only a consequence waits for its cause to be observed."""


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended: a row of the table and the details of this case."""

    ending: Ending
    reason: str
    message: str
    worker: int | None = None
    exit_code: int | None = None
    node: str | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome of the row."""
        return self.ending.outcome


def success() -> Verdict:
    """Return the verdict on a gang of which every worker exited with 0."""
    return Verdict(ENDINGS[Cause.COMPLETED], reasons.COMPLETED, "")


def verdict(
    pods: list[Pod],
    replicas: int,
    created: bool,
    now: datetime,
    *,
    overlooked: Collection[int] = (),
) -> Verdict | None:
    """Return how the attempt ended, or None while it goes on or its cause may still be observed.

    `overlooked` are workers whose pods may be missing, because they ended before the export.
    """
    ends = {pod.index: pod.ended for pod in pods if pod.ended}
    if len(ends) == replicas and all(end.exit_code == 0 for end in ends.values()):
        return success()
    failures = _in_order([(end, index) for index, end in ends.items() if end.exit_code != 0])
    present = {pod.index for pod in pods if not pod.gone or pod.ended or pod.failure}
    absent = set(range(replicas)) - present if created else set()
    ignored = absent.intersection(overlooked)
    if 0 in ends and not failures and len(ends) + len(ignored) == replicas:
        return success()
    missing = sorted(absent - ignored)
    lost = [pod for pod in pods if pod.ended is None and pod.lost(now)]
    causes = [i for _, i in failures if not meaning(ends[i].exit_code).consequence]
    failed = [i for i in causes if ends[i].exit_code != ExitCode.STOPPED and not ends[i].unknown]
    if failed:
        return from_exit(failed[0], ends[failed[0]], pods)
    broken = [pod for pod in pods if pod.failure]
    if not failures and not missing and not lost and not broken:
        return None
    if _cause_may_follow(pods, failures, now):
        return None
    if causes:
        # A missing pod was deleted, even if its deletion was not observed.
        return from_exit(causes[0], ends[causes[0]], pods, pod_missing=bool(missing))
    if broken:
        return from_failed_pod(broken[0])
    if missing:
        return _from_vanished_pod(missing[0], pods)
    first = next((pod for pod in pods if failures and pod.index == failures[0][1]), None)
    if lost := lost or [pod for pod in pods if pod.silent_since and not pod.ended]:
        return from_lost_worker(lost[0], first)
    index = failures[0][1]
    found = from_exit(index, ends[index], pods)
    left = [pod for pod in pods if pod.ended is None]
    return _blame(found, left[0]) if left else found


def _in_order(failures: list[tuple[Ended, int]]) -> list[tuple[datetime, int]]:
    """Return time and worker of failures in the order of their times.

    The time of an unknown end is that of its discovery or an estimate, so it comes last.
    """
    ordered = sorted(failures, key=lambda found: (found[0].unknown, found[0].finished, found[1]))
    return [(end.finished, index) for end, index in ordered]


def permanent_failure(pods: list[Pod]) -> Verdict | None:
    """Return the verdict of an exit that no other attempt could avoid, if a pod had one."""
    for pod in pods:
        if pod.ended and is_permanent(pod.ended.exit_code, prepare=False):
            return from_exit(pod.index, pod.ended, pods)
    return None


def seconds_until_final(pods: list[Pod], now: datetime) -> float | None:
    """Return after how many seconds `verdict` may change without any event, or None."""
    failures = [p.ended.finished for p in pods if p.ended and p.ended.exit_code != 0]
    due = [moment + timedelta(seconds=CAUSE_WAIT) for moment in failures]
    deletions = [pod.deletion for pod in pods if pod.deletion and not pod.gone]
    due += [deletion + timedelta(seconds=LOST_AFTER) for deletion in deletions]
    waits = [(moment - now).total_seconds() + 1 for moment in due]  # times have whole seconds
    return min((wait for wait in waits if wait > 0), default=None)


def _cause_may_follow(pods: list[Pod], failures: list[tuple[datetime, int]], now: datetime) -> bool:
    """Return whether a pod that still runs may be saving, or may be the cause of a lost peer."""
    alive = [pod for pod in pods if pod.ended is None and not pod.over(now)]
    if not alive:
        return False
    if any(pod.asked_to_stop for pod in alive):
        return True
    return bool(failures) and (now - failures[0][0]).total_seconds() < CAUSE_WAIT


def cause_is_awaited(pods: list[Pod], failed: Pod, now: datetime) -> bool:
    """Return whether another pod may still show why this one ended."""
    assert failed.ended
    alive = [pod for pod in pods if pod.ended is None and not pod.gone]
    return bool(alive) and (now - failed.ended.finished).total_seconds() < CAUSE_WAIT


def from_exit(index: int, end: Ended, pods: list[Pod], *, pod_missing: bool = False) -> Verdict:
    """Return the verdict on a gang whose end was caused by the exit of this worker."""
    pod = next(pod for pod in pods if pod.index == index)
    if end.unknown and pod.failure:
        return from_failed_pod(pod)
    if end.unknown:
        why = f"node {pod.node} or its container runtime was restarted"
        return _lost(Cause.NODE_LOST, pod, f"{why} ({pod.name})", end.exit_code)
    gang_asked = pod_missing or any(pod.asked_to_stop for pod in pods)
    cause = cause_of_exit(end.exit_code, gang_asked=gang_asked, pod_asked=pod.asked_to_stop)
    ending = ENDINGS[cause]
    if ending.saves:
        text = f"asked to stop (preemption, drain or deletion); {saved_progress(pods)}"
        return Verdict(ending, ending.reason or "", text, index, end.exit_code, pod.node)
    reason, message = reason_and_message(pod)
    if cause == Cause.KILLED:
        message = "it was asked to stop and was killed before it had saved a checkpoint"
    elif was_killed(end):
        message = killed_message(message, pod)
    text = f"worker {index}: {message or f'exit code {end.exit_code}'}"
    found = (ending.reason or reason)[:64]
    return Verdict(ending, found, text[:1024], index, end.exit_code, pod.node)


def from_failed_pod(pod: Pod) -> Verdict:
    """Return the verdict on a gang of which this pod failed before its trainer container ended."""
    reason, message = pod.failure or (reasons.POD_FAILED, "")
    text = f"worker {pod.index}: {message}"[:1024]
    return Verdict(ENDINGS[Cause.POD_FAILED], reason[:64], text, worker=pod.index, node=pod.node)


def _from_vanished_pod(index: int, pods: list[Pod]) -> Verdict:
    pod = next((pod for pod in pods if pod.index == index), None)
    if pod is None:
        ending, text = ENDINGS[Cause.POD_VANISHED], f"worker {index} was lost: its pod vanished"
        return Verdict(ending, ending.reason or "", text, worker=index)
    return _lost(Cause.POD_VANISHED, pod, f"its pod {nodes.place(pod)} vanished")


def from_lost_worker(pod: Pod, first: Pod | None) -> Verdict:
    """Return the verdict on a worker whose node does not answer; `first` is how a peer ended."""
    silence = nodes.silence(pod) or f"node {pod.node}, which does not answer"
    why = f"its pod {pod.name} is on {silence}"
    if first and (message := reason_and_message(first)[1]):
        why += f"; another worker reported: {message}"
    return _lost(Cause.NODE_LOST, pod, why)


def _lost(cause: Cause, pod: Pod, why: str, exit_code: int | None = None) -> Verdict:
    ending, text = ENDINGS[cause], f"worker {pod.index} was lost: {why}"[:1024]
    return Verdict(ending, ending.reason or "", text, pod.index, exit_code, pod.node)


def _blame(found: Verdict, pod: Pod) -> Verdict:
    """Name the worker that did not end with its peers, because its node may be cut off."""
    return replace(found, message=f"{not_ended(pod)}{found.message}"[:1024], node=pod.node)


def not_ended(pod: Pod) -> str:
    """Return the clause that precedes the message of a gang whose pod did not end with the rest."""
    where = nodes.place(replace(pod, silent_since=None))
    return f"worker {pod.index} (pod {where}) has not ended; "


def saved_progress(gang: list[Pod]) -> str:
    """Return a clause on what a gang that exited with 75 has saved, as worker 0 reported it."""
    result = termination_result(gang)
    if result is None or result.progress is None:
        return "everything is saved"
    step, newest = result.progress.step, max((c.step for c in result.checkpoints), default=0)
    if newest >= step:
        return "everything is saved"
    text = f"it could save up to step {newest} only, {step - newest} steps are redone"
    problem = result.progress.checkpoint_problem
    return f"{text}: {problem}" if problem else text


def reason_and_message(pod: Pod) -> tuple[str, str]:
    """Return reason and message of the end of a pod's container, from its result if it left one."""
    end = pod.ended
    assert end is not None
    if end.reason == "OOMKilled":
        return reasons.OUT_OF_MEMORY, _out_of_memory(pod)
    if result := end.result():
        return result.reason, result.message
    return meaning(end.exit_code).reason, end.message[-512:].strip()


def was_killed(end: Ended) -> bool:
    """Return whether a container ended by SIGKILL, for another reason than its memory limit."""
    return end.exit_code == _SIGKILL and end.reason != "OOMKilled"


def killed_message(message: str, pod: Pod) -> str:
    """Return the message of a container, or of a rank in it, that was killed without a request."""
    where = f"of node {pod.node} " if pod.node else ""
    hint = (
        "SIGKILL without a request: probably the kernel's out-of-memory killer; see the kernel log "
        f"{where}(dmesg) and its free memory"
    )
    return f"{hint}; {message}" if message else hint


def _out_of_memory(pod: Pod) -> str:
    what = f"the container of pod {nodes.place(pod)} was killed"
    template = "workers.template"
    if pod.role == "prepare":
        what, template = f"preparation: {what}", "prepare.template"
    field = f"resources.limits.memory of the container {names.CONTAINER} in {template}"
    if pod.memory_limit is None:
        return (
            f"{what} because memory was exhausted; it has no memory limit of its own, so that of "
            f"the pod or the memory of the node was; set {field}"
        )
    limit = pod.memory_limit
    return f"{what} for using more host memory than its limit of {limit}; raise {field}"
