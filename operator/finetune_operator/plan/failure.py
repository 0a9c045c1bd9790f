"""Why an attempt ended: one table, the same as on the page docs/restarts.md.

The cause is the first exit that is not a consequence (79 fenced, 88 peer lost); ties go by worker
index, for clocks of nodes differ and times have whole seconds.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from finetune_api.exit_codes import ExitCode, is_permanent, meaning
from finetune_api.status import Attempt
from finetune_operator.plan.observe import LOST, Ended, Pod, last_words

Outcome = Literal["Succeeded", "Preempted", "Failed", "Suspended", "Released"]
SETTLE = 15.0  # s a consequence waits for its cause to be seen
_SAME_PLACE = 50  # steps


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended."""

    outcome: Outcome
    reason: str
    message: str
    worker: int | None = None
    exit_code: int | None = None
    counted: bool = True
    permanent: bool = False
    backs_off: bool = False  # waits before the next attempt though it does not count


def verdict(pods: list[Pod], replicas: int, created: bool, now: datetime) -> Verdict | None:
    """The end of the attempt, None while it goes on (or while its cause may still show)."""
    ends = {pod.index: pod.ended for pod in pods if pod.ended}
    if len(ends) == replicas and all(end.exit_code == 0 for end in ends.values()):
        return Verdict("Succeeded", "Completed", "", counted=False)
    failures = sorted(
        ((end.finished, index) for index, end in ends.items() if end.exit_code != 0),
    )
    present = {pod.index for pod in pods if not pod.gone or pod.ended}
    missing = sorted(set(range(replicas)) - present) if created else []
    lost = [pod for pod in pods if pod.ended is None and pod.lost(now)]
    causes = [i for _, i in failures if not meaning(ends[i].exit_code).consequence]
    own = [i for i in causes if ends[i].exit_code != ExitCode.STOPPED]
    if own:
        return _of_exit(own[0], ends[own[0]], pods)
    broken = [pod for pod in pods if pod.trouble and not pod.gone]
    if not failures and not missing and not lost and not broken:
        return None
    if _may_still_show(pods, failures, now):
        return None
    if causes:
        return _of_exit(causes[0], ends[causes[0]], pods, asked=bool(missing))
    if broken:
        reason, text = broken[0].trouble or ("PodFailed", "")
        text = f"worker {broken[0].index}: {text}"[:1024]
        return Verdict("Failed", reason[:64], text, worker=broken[0].index)
    if missing or lost:
        index = missing[0] if missing else lost[0].index
        text = "its pod vanished" if missing else "its node does not answer"
        return Verdict("Failed", "WorkerLost", f"worker {index} was lost: {text}", worker=index)
    return _of_exit(failures[0][1], ends[failures[0][1]], pods)


def permanent(pods: list[Pod]) -> Verdict | None:
    """An exit that no other attempt could mend, whatever else happened to the gang."""
    for pod in pods:
        if pod.ended and is_permanent(pod.ended.exit_code, prepare=False):
            return _of_exit(pod.index, pod.ended, pods)
    return None


def settles_in(pods: list[Pod], now: datetime) -> float | None:
    """Seconds until `verdict` must be asked again though nothing happens; None: never."""
    failures = [p.ended.finished for p in pods if p.ended and p.ended.exit_code != 0]
    due = [moment + timedelta(seconds=SETTLE) for moment in failures]
    due += [pod.deletion + timedelta(seconds=LOST) for pod in pods if pod.deletion and not pod.gone]
    waits = [(moment - now).total_seconds() + 1 for moment in due]  # times have whole seconds
    return min((wait for wait in waits if wait > 0), default=None)


def _may_still_show(pods: list[Pod], failures: list[tuple[datetime, int]], now: datetime) -> bool:
    """Others still run: they may be saving (a stop), or be the cause of a lost peer."""
    going = [pod for pod in pods if pod.ended is None and not pod.gone and not pod.lost(now)]
    if not going:
        return False
    stopping = [pod for pod in pods if pod.told_to_stop]
    if stopping and any(pod.told_to_stop for pod in going):
        return True
    if not failures:
        return False
    waited = (now - failures[0][0]).total_seconds()
    return waited < SETTLE


def _of_exit(index: int, end: Ended, pods: list[Pod], *, asked: bool = False) -> Verdict:
    """`asked`: a pod is missing, so somebody deleted it, even if nobody saw that."""
    reason, message = told(end)
    if end.exit_code == ExitCode.STOPPED and (asked or any(pod.told_to_stop for pod in pods)):
        text = f"told to stop (preemption, drain or deletion); {kept(pods)}"
        return Verdict("Preempted", "Preempted", text, index, end.exit_code, counted=False)
    pod = next(pod for pod in pods if pod.index == index)
    if pod.told_to_stop and end.exit_code in (137, 143):
        reason, message = "Evicted", "it was told to go and had no time to save a checkpoint"
    text = f"worker {index}: {message or f'exit code {end.exit_code}'}"
    permanent = is_permanent(end.exit_code, prepare=False)
    return Verdict("Failed", reason[:64], text[:1024], index, end.exit_code, permanent=permanent)


def kept(gang: list[Pod]) -> str:
    """What a gang that ended with 75 has saved, by worker 0's own account."""
    said = last_words(gang)
    if said is None or said.progress is None:
        return "everything is saved"
    step, newest = said.progress.step, max((c.step for c in said.checkpoints), default=0)
    if newest >= step:
        return "everything is saved"
    return f"it could save up to step {newest} only, {step - newest} steps are redone"


def told(end: Ended) -> tuple[str, str]:
    """Reason and message of a container's end, in its own words where it left some."""
    if end.reason == "OOMKilled":
        return "OutOfMemory", (
            "the container was killed for using more host memory than its limit; raise the "
            "trainer container's memory limit in workers.template"
        )
    if result := end.result():
        return result.reason, result.message
    return meaning(end.exit_code).reason, end.message[-512:].strip()


def failed_before(attempts: list[Attempt]) -> Attempt | None:
    """The newest failure before the last attempt.

    Attempts that were preempted or let go in between say nothing about it. After a suspension the
    gang may be another one, so that what failed before is no measure.
    """
    for attempt in reversed(attempts[:-1]):
        if attempt.outcome == "Suspended":
            return None
        if attempt.outcome == "Failed":
            return attempt
    return None


def repeats(verdict: Verdict, step: int | None, before: Attempt | None) -> bool:
    """The same end at the same place as the failure before: another try would end alike."""
    if before is None or before.reason != verdict.reason:
        return False
    if verdict.reason == "OutOfMemory":
        return before.last_step == step
    if verdict.reason == "Diverged":
        return abs((before.last_step or 0) - (step or 0)) <= _SAME_PLACE
    return False
