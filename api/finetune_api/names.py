"""Labels, ports, limits and object names that operator, trainer and command line share."""

PLURAL = "finetunejobs"
KIND = "FineTuneJob"
CONTAINER = "trainer"

LABEL_JOB_NAME = "finetune.dev/job-name"
LABEL_JOB_UID = "finetune.dev/job-uid"
LABEL_ROLE = "finetune.dev/role"  # prepare | worker
LABEL_ATTEMPT = "finetune.dev/attempt"
LABEL_WORKER_INDEX = "finetune.dev/worker-index"
POD_LABELS = (
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_ROLE,
    LABEL_ATTEMPT,
    LABEL_WORKER_INDEX,
)
# Annotations of a prepare pod.
ANNOTATION_INPUTS = "finetune.dev/inputs-digest"  # digest of the inputs that its result depends on
ANNOTATION_TEMPLATE = "finetune.dev/template-digest"  # digest of the template and the scheduling
ANNOTATION_RETRY = "finetune.dev/retry"  # number of prepare pods that failed before it
# Annotation of a worker.
ANNOTATION_CONFIG = "finetune.dev/config-digest"  # digest of what all workers must agree on

RENDEZVOUS_PORT = 29500
REPORT_PORT = 29600
REPORT_PATH = "/v1/report"

ENV_RUN = "FINETUNE_RUN"
ENV_POD_IP = "FINETUNE_POD_IP"
# The rank of a worker's processes, in the variables of torchrun.
RANK_VARIABLES = (
    "PET_NNODES",
    "PET_NODE_RANK",
    "PET_NPROC_PER_NODE",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
)
CLAIMS_PATH = "/mnt/claims"
RUN_CONFIG_MAX_BYTES = 100_000  # the kernel allows 128 KiB per environment string
RESULT_MAX_BYTES = 4096  # the kubelet truncates a longer termination message
POD_MESSAGES_MAX_BYTES = 12_288  # of all containers together, which the kubelet divides equally
MAX_CHECKPOINTS = 10  # of a run, at most, in storage, in a report and in a status
MAX_AVOIDED_NODES = 5  # in a status
MAX_ATTEMPTS = 10  # listed in a report or in a status; earlier ones are summed up


def prepare_pod_name(job: str) -> str:
    """Return the name of the prepare pod of a job."""
    return f"{job}-prepare"


def worker_pod_name(job: str, attempt: int, index: int) -> str:
    """Return the name and hostname of a worker. The attempt makes it unique among gangs."""
    return f"{job}-{attempt}-{index}"


def worker_of_pod_name(job: str, name: str) -> tuple[int, int] | None:
    """Return attempt and index of a worker of a job by the name of its pod, or None."""
    attempt, _, index = name.removeprefix(f"{job}-").partition("-")
    numbers = attempt.isdecimal() and index.isdecimal() and attempt.isascii() and index.isascii()
    found = (int(attempt), int(index)) if numbers and len(name) <= 253 else None
    return found if found and worker_pod_name(job, *found) == name else None


def master_address(job: str, attempt: int, namespace: str) -> str:
    """Return the DNS name of worker 0, which the headless Service of the job provides."""
    return f"{worker_pod_name(job, attempt, 0)}.{job}.{namespace}.svc"


def with_port(address: str, port: int) -> str:
    """Return address and port as a URL has them: an IPv6 address is put in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
