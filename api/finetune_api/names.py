"""Labels, ports and object names that operator, trainer, node and command line agree on."""

PLURAL = "finetunejobs"
KIND = "FineTuneJob"
CONTAINER = "trainer"

LABEL_JOB_NAME = "finetune.dev/job-name"
LABEL_JOB_UID = "finetune.dev/job-uid"
LABEL_ROLE = "finetune.dev/role"  # prepare | worker
LABEL_ATTEMPT = "finetune.dev/attempt"
LABEL_WORKER_INDEX = "finetune.dev/worker-index"
ANNOTATION_INPUTS = "finetune.dev/inputs-digest"  # of a prepare pod: what its answer is valid for
ANNOTATION_TEMPLATE = "finetune.dev/template-digest"  # of a prepare pod: where it may run
ANNOTATION_RETRY = "finetune.dev/retry"  # of a prepare pod: how many failed before it

RENDEZVOUS_PORT = 29500
REPORT_PORT = 29600
REPORT_PATH = "/v1/report"

ENV_RUN = "FINETUNE_RUN"
ENV_POD_IP = "FINETUNE_POD_IP"
CLAIMS_PATH = "/mnt/claims"
RUN_CONFIG_MAX_BYTES = 100_000  # the kernel allows 128 KiB per environment string
RESULT_MAX_BYTES = 4096  # the kubelet cuts a termination message there


def prepare_pod_name(job: str) -> str:
    """Name of the pod that prepares the data of a job."""
    return f"{job}-prepare"


def worker_pod_name(job: str, attempt: int, index: int) -> str:
    """Name and hostname of one worker; the attempt is in it, so two gangs never share a name."""
    return f"{job}-{attempt}-{index}"


def master_address(job: str, attempt: int, namespace: str) -> str:
    """Stable DNS name of worker 0, through the headless Service `job`."""
    return f"{worker_pod_name(job, attempt, 0)}.{job}.{namespace}.svc"
