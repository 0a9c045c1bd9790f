"""The configuration of the trainer in a pod, which it reads from an environment variable."""

from finetune_api import names, reasons
from finetune_api.base import Object
from finetune_api.run import Role, RunConfig
from finetune_api.spec.use import received
from finetune_operator.plan import inputs
from finetune_operator.plan.observe import Job
from finetune_operator.plan.template import UnrenderableError, trainer_of

_INJECTED = 2  # containers
_RESULT_MIN_BYTES = 1024
_NOT_OF_THE_SPEC = {"attempt", "highest_step", "unfinished_owners", "result_max_bytes"}
"""Fields whose values do not follow from the spec, and that no two ranks must agree on."""


class RunConfigTooLargeError(UnrenderableError):
    """The run configuration does not fit into an environment variable."""

    reason = reasons.RUN_CONFIG_TOO_LARGE


def for_prepare(job: Job) -> RunConfig:
    """Return the configuration of the prepare pod."""
    return _of(job, "prepare")


def for_workers(job: Job, highest_step: int) -> RunConfig:
    """Return the configuration of the workers of the attempt that `job.status` committed."""
    status = job.status
    assert status.attempt is not None
    assert status.resolved is not None
    return _of(job, "worker").replace(
        attempt=status.attempt,
        highest_step=highest_step,
        plan=status.plan,
        model_revision=status.resolved.model_revision,
        prepared_digest=status.resolved.prepared_digest,
        run_digest=status.resolved.run_digest,
    )


def _of(job: Job, role: Role) -> RunConfig:
    """Return the part of a RunConfig that follows from the job alone."""
    return RunConfig.model_validate(
        received(job.spec, role)
        | {
            "job_name": job.name,
            "job_namespace": job.namespace,
            "job_uid": job.uid,
            "role": role,
            "unfinished_owners": job.unfinished_owners,
            "mounts": {claim: f"{names.CLAIMS_PATH}/{claim}" for claim in inputs.claims(job)},
        }
    )


def digest(config: RunConfig) -> str:
    """Return a digest of what all workers of a gang must agree on."""
    return inputs.digest(
        config.model_dump(mode="json", exclude_none=True, exclude=_NOT_OF_THE_SPEC)
    )


def encode(config: RunConfig, template: Object) -> str:
    """Return the value of the variable in a pod with this template.

    Raise RunConfigTooLargeError if it is too long.
    """
    config = config.replace(result_max_bytes=_result_max_bytes(template))
    # The kubelet expands $(NAME) in values, so dollar signs are written as JSON escapes.
    encoded = config.to_json().replace("$", "\\u0024")
    size = len(encoded.encode())
    if size > names.RUN_CONFIG_MAX_BYTES:
        raise RunConfigTooLargeError(
            f"the run configuration has {size} bytes, at most {names.RUN_CONFIG_MAX_BYTES} are "
            "allowed; name fewer or shorter sources in dataset"
        )
    return encoded


def _result_max_bytes(template: Object) -> int:
    """Return the most bytes of a container's termination message that the kubelet passes on.

    It divides the bytes of a pod among all containers. Admission webhooks may add some of them.
    """
    spec = template.get("spec", {})
    own = 0 if trainer_of(spec) else 1
    count = len(spec.get("initContainers", [])) + len(spec.get("containers", [])) + own
    each = names.POD_MESSAGES_MAX_BYTES // (count + _INJECTED)
    return max(_RESULT_MIN_BYTES, min(names.RESULT_MAX_BYTES, each))
