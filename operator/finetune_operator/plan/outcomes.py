"""The table of all ways in which an attempt can end, and what the operator does then.

To answer "what happens when a pod is preempted?", find the row and read its columns:

- `outcome` and `reason` are recorded in `status.attempts[]`. Where the reason is None, it is the
  one that the container or the pod reported, else that of the exit code (`exit_codes.py`).
- `counted`: the restart counts against `runPolicy.maxRestarts` and waits for the back-off.
- `counted_without_progress`: the same, but only if the attempt finished no new step.
- `saves`: the gang may use its full grace period to save a checkpoint.
- `backs_off`: the next attempt waits although it is not counted, longer with every such attempt in
  a row. The job never fails for these, because they end for reasons outside of it.
- `permanent`: the job fails; there is no next attempt.
- `blames_node`: the node of the worker is recorded in `status.avoidedNodes`.

`verdict.py` finds the row, `ending.py` writes it down and `restart.py` decides what follows.
docs/operate/restarts.md has the same table for users.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Literal

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode, meaning

Outcome = Literal["Succeeded", "Preempted", "Failed", "Suspended", "Released"]
RESTARTED: tuple[Outcome, ...] = ("Failed", "Preempted")
"""Outcomes after which the next attempt is a restart."""


class BackOff(IntEnum):
    """The first delay before an attempt that is not counted, in units of the restart back-off."""

    NONE = 0
    COMPETING = 1  # times a random factor, because gangs that are released together compete again
    NODE = 3  # a device plugin that restarts or a full node needs longer than a crash
    STORAGE = 6  # a user must free space, or another job must end


@dataclass(frozen=True)
class Ending:
    """A row of the table. The columns are described above."""

    outcome: Outcome
    reason: str | None
    counted: bool = False
    counted_without_progress: bool = False
    saves: bool = False
    backs_off: BackOff = BackOff.NONE
    permanent: bool = False
    blames_node: bool = False


class Cause(Enum):
    """The cause of an ending that the operator did not request."""

    COMPLETED = auto()
    PREEMPTED = auto()
    KILLED = auto()
    STOPPED_UNASKED = auto()
    PERMANENT_EXIT = auto()
    OTHER_EXIT = auto()
    STORAGE = auto()
    CONSEQUENT_EXIT = auto()
    POD_FAILED = auto()
    POD_VANISHED = auto()
    NODE_LOST = auto()
    REFUSED = auto()
    START_INTERRUPTED = auto()
    PEER_MISSING = auto()


# The pods of a gang end without a stop request of the operator.
ENDINGS: dict[Cause, Ending] = {
    # Every worker exited with 0.
    Cause.COMPLETED: Ending("Succeeded", reasons.COMPLETED),
    # A pod was asked to stop (preemption, eviction, drain or deletion) and the gang saved: 75.
    Cause.PREEMPTED: Ending(
        "Preempted", reasons.PREEMPTED, saves=True, counted_without_progress=True
    ),
    # A pod was asked to stop and was killed before it saved: 137 or 143.
    Cause.KILLED: Ending("Failed", reasons.EVICTED, counted=True),
    # A worker saved and exited with 75, but no pod was asked to stop.
    Cause.STOPPED_UNASKED: Ending("Failed", None, counted=True),
    # 64 BadConfiguration, 65 BadData, 66 InputMissing, 77 NotPermitted.
    Cause.PERMANENT_EXIT: Ending("Failed", None, permanent=True),
    # 69 StorageInUse, 73 StorageNotWritable: the job waits until its storage can be used.
    Cause.STORAGE: Ending("Released", None, backs_off=BackOff.STORAGE),
    # 78 EnvironmentUnusable, 86 Diverged, 87 OutOfMemory, 89 Hang, and every
    # code that exit_codes.py does not list: Crashed. See also PERMANENT_IF_REPEATED.
    Cause.OTHER_EXIT: Ending("Failed", None, counted=True),
    # 79 Fenced, 88 PeerLost, if no other cause was observed within verdict.CAUSE_WAIT.
    Cause.CONSEQUENT_EXIT: Ending("Failed", None, counted=True),
    # The kubelet evicted or refused the pod, or an init container failed.
    Cause.POD_FAILED: Ending("Failed", None, counted=True),
    # The pod does not exist any more, and its end was not observed.
    Cause.POD_VANISHED: Ending("Failed", reasons.WORKER_LOST, counted=True),
    # The pod is overdue for deletion: its node does not answer.
    Cause.NODE_LOST: Ending("Failed", reasons.WORKER_LOST, counted=True, blames_node=True),
    # The next three apply to a gang of which not all workers ever ran (incomplete_gang.py). An exit
    # code that is a worker's own fault has the same row there as in a complete gang.
    # A node refused or evicted a pod before the gang was complete.
    Cause.REFUSED: Ending("Released", None, backs_off=BackOff.NODE, blames_node=True),
    # A pod vanished, or was asked to stop, before the gang was complete: its node died, or it was
    # preempted, drained or deleted. No step has begun, so nothing is saved.
    Cause.START_INTERRUPTED: Ending("Released", reasons.WORKER_LOST, backs_off=BackOff.COMPETING),
    # A worker ended because a peer was not there: 78, 79 or 88 before the gang was complete.
    Cause.PEER_MISSING: Ending("Released", reasons.GANG_INCOMPLETE, backs_off=BackOff.COMPETING),
}

# The operator stops a gang itself. The key is written to status.attempts[].stopReason.
STOPS: dict[str, Ending] = {
    # spec.suspend is true.
    reasons.SUSPENDED: Ending("Suspended", reasons.SUSPENDED, saves=True),
    # runPolicy.activeDeadlineSeconds, runPolicy.startDeadlineSeconds.
    reasons.ACTIVE_DEADLINE_EXCEEDED: Ending(
        "Failed", reasons.ACTIVE_DEADLINE_EXCEEDED, saves=True, permanent=True
    ),
    reasons.START_DEADLINE_EXCEEDED: Ending(
        "Failed", reasons.START_DEADLINE_EXCEEDED, permanent=True
    ),
    # Some workers held a node for runPolicy.gangStartTimeoutSeconds while others could not start.
    reasons.GANG_INCOMPLETE: Ending(
        "Released", reasons.GANG_INCOMPLETE, backs_off=BackOff.COMPETING
    ),
    # The spec was edited while only some of the pods existed.
    reasons.CONFIGURATION_CHANGED: Ending("Released", reasons.CONFIGURATION_CHANGED),
    # No activity for runPolicy.progressDeadlineSeconds, and the supervisor did not act.
    reasons.HANG: Ending("Failed", reasons.HANG, counted=True),
}

PERMANENT_IF_REPEATED: dict[str, int] = {reasons.OUT_OF_MEMORY: 0, reasons.DIVERGED: 50}
"""Reason -> steps. The job fails if the previous failure had the same reason this close by."""

_KILLED = (137, 143)  # SIGKILL and SIGTERM
_OWN_FAILURES = (reasons.POD_FAILED, "DeadlineExceeded")
"""Reasons of a failed pod that follow from its template: an init container, its own deadline."""


def by_a_node(reason: str) -> bool:
    """Return whether a pod with this reason failed because of its node, and not by itself.

    Kubelets have many reasons to refuse or evict a pod (UnexpectedAdmissionError, OutOfcpu,
    NodeAffinity, NodeShutdown, Evicted, ...), and each version adds some.
    """
    return reason not in _OWN_FAILURES


def misses_a_peer(code: int) -> bool:
    """Return whether this exit code can only follow from a peer, if one has not started yet."""
    return code == ExitCode.ENVIRONMENT_UNUSABLE or meaning(code).consequence


def cause_of_exit(code: int, *, gang_asked: bool, pod_asked: bool) -> Cause:
    """Return the cause for a worker that exited with a code other than 0.

    `gang_asked` and `pod_asked` are whether any pod of the gang, and this pod, was asked to stop.
    """
    if code == ExitCode.STOPPED:
        return Cause.PREEMPTED if gang_asked else Cause.STOPPED_UNASKED
    if code in _KILLED and pod_asked:
        return Cause.KILLED
    found = meaning(code)
    if found.permanent:
        return Cause.PERMANENT_EXIT
    if found.waits or code == ExitCode.STORAGE_NOT_WRITABLE:
        return Cause.STORAGE
    return Cause.CONSEQUENT_EXIT if found.consequence else Cause.OTHER_EXIT
