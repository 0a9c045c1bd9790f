"""The messages between the operator and a pod: RunConfig into it, Report and Result out of it."""

from typing import Literal

from pydantic import Field, field_validator

from finetune_api import spec
from finetune_api.base import API_VERSION, Count, Message, Seconds, Step, Time, clean
from finetune_api.names import MAX_ATTEMPTS, MAX_CHECKPOINTS, RESULT_MAX_BYTES
from finetune_api.progress import (
    CheckpointRecord,
    DataSummary,
    Evaluation,
    Output,
    Plan,
    Progress,
    Stage,
    StepLedger,
)

Role = Literal["prepare", "worker"]
_DEFAULTS = spec.RunPolicy()


class RunConfig(Message):
    """The value of the environment variable FINETUNE_RUN of every pod. It contains no secret."""

    api_version: str = API_VERSION
    job_name: str
    job_namespace: str
    job_uid: str
    role: Role
    attempt: int = Field(default=0, description="Number of the attempt; 0 for the prepare pod.")
    highest_step: int = Field(
        default=0, description="Highest step that any earlier attempt finished."
    )
    model: spec.Model
    dataset: spec.Dataset
    training: spec.Training
    checkpoints: spec.Checkpoints
    tracking: list[spec.Tracker] | None = Field(
        default=None, description="Trackers, for workers only. Default: TensorBoard."
    )
    cache: str | None = Field(
        default=None, description="The pvc:// folder of the cache. Default: <storage>/cache."
    )
    evaluation: spec.Evaluation | None = None
    output: spec.Output | None = None
    mounts: dict[str, str] = Field(description="Path in the pod by the name of the claim.")
    plan: Plan | None = Field(default=None, description="The plan, for workers only.")
    model_revision: str | None = Field(
        default=None,
        description="Revision that the prepare pod resolved the model to, for workers only. It "
        "names the folder of the model in the cache.",
    )
    prepared_digest: str | None = Field(
        default=None, description="Digest of the prepared data, for workers only."
    )
    run_digest: str | None = Field(
        default=None, description="Digest that a resumed run must have, for workers only."
    )
    termination_grace_period_seconds: int = _DEFAULTS.termination_grace_period_seconds
    progress_deadline_seconds: int = Field(
        default=_DEFAULTS.progress_deadline_seconds,
        description="Seconds without activity after which the pod ends with code 89.",
    )

    @property
    def asks_the_hub(self) -> bool:
        """Whether an input is stored in a repository of the Hugging Face Hub."""
        entries = [*self.dataset.train, *(self.dataset.validation or [])]
        return any(s.startswith("hf://") for s in [self.model.source, *(e.source for e in entries)])


class AttemptRecord(Message):
    """An earlier attempt, as its own record on storage describes it (attempts/<epoch>.json)."""

    attempt: Step
    update_time: Time = Field(description="When the record was last written.")
    ledger: StepLedger


class Report(Message):
    """The response of every worker to GET http://<pod ip>:<REPORT_PORT>/v1/report."""

    api_version: str = API_VERSION
    job_uid: str = Field(max_length=64)
    attempt: Step
    worker_index: Step
    sequence: Count = Field(
        description="Number that grows with every change. Readers ignore a smaller one."
    )
    stage: Stage
    stage_since: Time
    activity: Count = Field(description="Units of completed work; grows in every stage.")
    activity_age_seconds: Seconds = Field(description="Seconds since activity last grew.")
    # Only worker 0 sets the following fields.
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    ledger: StepLedger | None = None
    checkpoints: list[CheckpointRecord] = Field(default_factory=list, max_length=MAX_CHECKPOINTS)
    earlier_attempts: list[AttemptRecord] = Field(
        default_factory=list,
        max_length=MAX_ATTEMPTS,
        description="Records that earlier attempts left on storage.",
    )


class PrepareResult(Message):
    """The facts that only the prepare pod can find out."""

    prepared_digest: str = Field(max_length=80)
    run_digest: str = Field(max_length=80)
    model_revision: str = Field(max_length=80)
    parameter_count: Count
    data: DataSummary
    finished: Output | None = Field(
        default=None,
        description="The verified model, if storage already holds the one of exactly this run.",
    )

    _clean = field_validator("prepared_digest", "run_digest", "model_revision")(clean)


Outcome = Literal["Succeeded", "Stopped", "Failed"]


class Result(Message):
    """The container's termination message: how and why it ended."""

    api_version: str = API_VERSION
    outcome: Outcome
    reason: str = Field(max_length=64, pattern="^[A-Za-z][A-Za-z0-9]*$", description="CamelCase.")
    message: str = Field(
        default="",
        max_length=1024,
        description="Text for people: what happened, where, and what to do.",
    )
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    ledger: StepLedger | None = None
    checkpoints: list[CheckpointRecord] = Field(default_factory=list, max_length=MAX_CHECKPOINTS)
    output: Output | None = None
    prepared: PrepareResult | None = None

    _clean = field_validator("message")(clean)

    def to_termination_message(self) -> str:
        """Return JSON that fits the kubelet's limit.

        If it is too long, old checkpoints are left out first, then the sources, then the end of
        the message.
        """
        result = self
        while len((encoded := result.to_json()).encode()) > RESULT_MAX_BYTES:
            if len(result.checkpoints) > 1:
                result = result.replace(checkpoints=result.checkpoints[:-1])
            elif result.prepared and result.prepared.data.sources:
                data = result.prepared.data.replace(sources=[])
                result = result.replace(prepared=result.prepared.replace(data=data))
            elif len(result.message) > 64:
                result = result.replace(message=result.message[: len(result.message) // 2])
            else:
                result = Result(outcome=self.outcome, reason=self.reason)
        return encoded
