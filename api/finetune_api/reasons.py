"""Every reason that a job, a condition or an event of this project can show, and what it means.

Reasons of Kubernetes itself (`ImagePullBackOff`, `Evicted` with a kubelet's text, ...) are passed
on unchanged and are not listed here, unless this project reports them as well. The troubleshooting
page describes for each reason what the operator does and what a user can do.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """A reason and what it means."""

    name: str
    meaning: str
    ends_attempt: bool = False  # can be the reason of an attempt's outcome, hence of a restart


REASONS: dict[str, Reason] = {}
"""Name -> reason, in the order below."""


def _reason(name: str, meaning: str, *, ends_attempt: bool = False) -> str:
    REASONS[name] = Reason(name, meaning, ends_attempt)
    return name


# Nothing can be created yet, or pods cannot start.
CLAIM_MISSING = _reason("ClaimMissing", "A claim that a pvc:// address names does not exist.")
FORBIDDEN = _reason(
    "Forbidden", "The API server refuses a pod: Pod Security, rights, a priority class."
)
QUOTA_EXCEEDED = _reason("QuotaExceeded", "A ResourceQuota has no room for all pods of the gang.")
INVALID_TEMPLATE = _reason("InvalidTemplate", "A pod template cannot be used.")
UNKNOWN_DEVICE_TYPE = _reason(
    "UnknownDeviceType", "workers.deviceType is not in the operator's catalogue."
)
STORAGE_OVERLAPS_INPUT = _reason(
    "StorageOverlapsInput", "checkpoints.storage or cache is in a folder of model or data."
)
NAME_TAKEN = _reason("NameTaken", "An object of another owner has the name of a pod or Service.")
WAITING_FOR_OLD_PODS = _reason(
    "WaitingForOldPods", "An object of a deleted job of the same name is still being deleted."
)
REQUEST_FAILED = _reason(
    "RequestFailed", "The API server fails to carry out a request, or does not answer it."
)
RUN_CONFIG_TOO_LARGE = _reason(
    "RunConfigTooLarge", "The configuration of the pods exceeds the limit of its size."
)
SCHEDULING_GATED = _reason("SchedulingGated", "A scheduling gate holds the pods.")
VOLUME_NOT_BOUND = _reason("VolumeNotBound", "A claim is not bound to a volume.")
UNSCHEDULABLE = _reason("Unschedulable", "No node fits a pod.")
PULLING = _reason("Pulling", "A node pulls the image of a pod for more than 20 s.")
BACK_OFF = _reason(
    "BackOff", "The prepare pod failed or was evicted, and is retried after a delay."
)

# What a trainer container reports with its exit code (exit_codes.py).
COMPLETED = _reason("Completed", "The model is complete and was loaded back.", ends_attempt=True)
BAD_CONFIGURATION = _reason(
    "BadConfiguration", "A field, the model or the environment is not usable.", ends_attempt=True
)
BAD_DATA = _reason("BadData", "Data that cannot be read or learned from.", ends_attempt=True)
INPUT_MISSING = _reason("InputMissing", "An input does not exist.", ends_attempt=True)
STORAGE_NOT_WRITABLE = _reason(
    "StorageNotWritable", "Storage cannot be written or is too small.", ends_attempt=True
)
STORAGE_IN_USE = _reason(
    "StorageInUse", "A job that has not ended uses the storage.", ends_attempt=True
)
STOPPED = _reason("Stopped", "A worker saved and ended without a request.", ends_attempt=True)
NOT_PERMITTED = _reason("NotPermitted", "Credentials or rights are missing.", ends_attempt=True)
ENVIRONMENT_UNUSABLE = _reason(
    "EnvironmentUnusable", "A node, or the software on it, is not usable.", ends_attempt=True
)
FENCED = _reason("Fenced", "A newer attempt owns the storage.", ends_attempt=True)
DIVERGED = _reason("Diverged", "The loss or the gradients are no longer usable.", ends_attempt=True)
OUT_OF_MEMORY = _reason("OutOfMemory", "Device or host memory is exhausted.", ends_attempt=True)
PEER_LOST = _reason("PeerLost", "Workers lost the connection to each other.", ends_attempt=True)
HANG = _reason("Hang", "No work was completed for progressDeadlineSeconds.", ends_attempt=True)
CRASHED = _reason("Crashed", "The container ended with an unknown exit code.", ends_attempt=True)

# What a trainer container reports in its result, with one of the exit codes above.
STORAGE_OCCUPIED = _reason(
    "StorageOccupied",
    "The storage holds a run of another job that this job may not continue.",
    ends_attempt=True,
)
NETWORK_TROUBLE = _reason(
    "NetworkTrouble", "The Hub or an object store does not answer.", ends_attempt=True
)
DAMAGED_DOWNLOAD = _reason(
    "DamagedDownload", "A download does not match its checksum.", ends_attempt=True
)
INPUT_CHANGED = _reason(
    "InputChanged", "An object was replaced while it was downloaded.", ends_attempt=True
)
CHECKPOINT_DAMAGED = _reason(
    "CheckpointDamaged",
    "The last checkpoint cannot be read back for the export.",
    ends_attempt=True,
)

# What the operator concludes from pods.
PREEMPTED = _reason(
    "Preempted", "A worker was asked to stop and the gang saved.", ends_attempt=True
)
EVICTED = _reason(
    "Evicted", "A worker was asked to stop and was killed before it saved.", ends_attempt=True
)
WORKER_LOST = _reason(
    "WorkerLost", "A pod vanished, or its node does not answer.", ends_attempt=True
)
POD_FAILED = _reason(
    "PodFailed", "A pod failed before its trainer container ran.", ends_attempt=True
)
NO_RESULT = _reason("NoResult", "A pod ended with exit code 0 and left no result.")
OUTPUT_NOT_VERIFIED = _reason("OutputNotVerified", "The image did not verify its model.")

DOES_NOT_FIT = _reason("DoesNotFit", "The model needs more memory than the devices have.")

# Why the operator stops a gang.
SUSPENDED = _reason("Suspended", "spec.suspend is true.", ends_attempt=True)
ACTIVE_DEADLINE_EXCEEDED = _reason(
    "ActiveDeadlineExceeded", "The gangs ran for activeDeadlineSeconds in all.", ends_attempt=True
)
START_DEADLINE_EXCEEDED = _reason(
    "StartDeadlineExceeded", "Not all workers ran within startDeadlineSeconds.", ends_attempt=True
)
GANG_INCOMPLETE = _reason(
    "GangIncomplete", "Some workers held a node while others could not start.", ends_attempt=True
)
CONFIGURATION_CHANGED = _reason(
    "ConfigurationChanged", "The job was edited while its gang was created.", ends_attempt=True
)

# Notices about a job that goes on, and reasons of conditions that are as they should be.
REPORT_UNREACHABLE = _reason("ReportUnreachable", "The report of worker 0 cannot be fetched.")
NODE_NOT_READY = _reason("NodeNotReady", "The node of a worker does not answer.")
SAVE_FAILED = _reason("SaveFailed", "The newest save failed; older checkpoints remain.")
NO_CHECKPOINT = _reason("NoCheckpoint", "No checkpoint has been saved yet.")
ACCEPTED = _reason("Accepted", "Nothing was refused.")
ALL_RUNNING = _reason("AllRunning", "All workers run.")
VERIFIED = _reason("Verified", "The newest checkpoint was read back.")
FINISHED = _reason("Finished", "The job has ended.")
NOT_SUSPENDED = _reason("NotSuspended", "Suspension is not requested.")

# Reasons of events that are not reasons of a status.
PREPARE_FAILED = _reason("PrepareFailed", "The prepare pod failed or was evicted, and is retried.")
PREPARED = _reason("Prepared", "The data is prepared.")
SOURCE_REPEATS = _reason("SourceRepeats", "Rows of a source are seen more than 4 times.")
EXPERTS_UNUSED = _reason("ExpertsUnused", "No token reached some experts in 100 steps.")
DATA_DOUBTFUL = _reason("DataDoubtful", "Data was prepared that should be looked at.")
ATTEMPT_STARTED = _reason("AttemptStarted", "A gang is created.")
WORKERS_RUNNING = _reason("WorkersRunning", "All workers run.")
ATTEMPT_ENDED = _reason("AttemptEnded", "An attempt ended for an unknown reason.")
CHECKPOINT_VERIFIED = _reason("CheckpointVerified", "A newer checkpoint was read back.")
RESUMED = _reason("Resumed", "A suspension ended.")

OF_KUBERNETES = frozenset(
    {
        "ContainerStatusUnknown",
        "DeadlineExceeded",
        "NodeAffinity",
        "NodeLost",
        "NodeShutdown",
        "OutOfcpu",
        "OutOfephemeral-storage",
        "OutOfmemory",
        "OutOfpods",
        "Preempting",
        "Shutdown",
        "Terminated",
        "TopologyAffinityError",
        "UnexpectedAdmissionError",
    }
)
"""Reasons of pods that kubelets and node controllers set, and that become the reason of an attempt.

The list is not complete: the names of extended resources follow `OutOf`.
"""


def ending_attempts() -> frozenset[str]:
    """Return every known reason that an attempt can end with."""
    return OF_KUBERNETES | {reason.name for reason in REASONS.values() if reason.ends_attempt}
