"""What passes between the operator and a pod: configuration in, report and result out."""

from typing import Literal

from pydantic import Field, field_validator

from finetune_api import spec
from finetune_api.base import API_VERSION, Count, Message, Seconds, Step, Time, clean
from finetune_api.names import RESULT_MAX_BYTES
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


class RunConfig(Message):
    """The environment variable FINETUNE_RUN of every pod. Never holds a secret."""

    api_version: str = API_VERSION
    job_name: str
    job_namespace: str
    job_uid: str
    role: Role
    attempt: int = Field(default=0, description="0 for the prepare pod.")
    highest_step: int = Field(default=0, description="Highest step any earlier attempt finished.")
    model: spec.Model
    dataset: spec.Dataset
    training: spec.Training
    checkpoints: spec.Checkpoints
    tracking: list[spec.Tracker] | None = Field(
        default=None, description="Workers only; absent: TensorBoard."
    )
    cache: str | None = Field(default=None, description="pvc:// folder; absent: <storage>/cache.")
    evaluation: spec.Evaluation | None = None
    output: spec.Output | None = None
    mounts: dict[str, str] = Field(description="Claim name -> path in the pod.")
    plan: Plan | None = Field(default=None, description="Workers only.")
    model_revision: str | None = Field(
        default=None,
        description="What the prepare pod resolved the model to; names its folder in the cache. "
        "Workers only.",
    )
    prepared_digest: str | None = Field(default=None, description="Workers only.")
    run_digest: str | None = Field(default=None, description="Workers only.")
    termination_grace_period_seconds: int = 300
    progress_deadline_seconds: int = Field(
        default=1800, description="Seconds without activity after which the pod ends with 89."
    )

    @property
    def asks_the_hub(self) -> bool:
        """Whether an input is a repository of the Hugging Face Hub."""
        entries = [*self.dataset.train, *(self.dataset.validation or [])]
        return any(s.startswith("hf://") for s in [self.model.source, *(e.source for e in entries)])


class RankHeartbeat(Message):
    """How long ago a local rank last said something."""

    rank: Step
    age_seconds: Seconds


class AttemptRecord(Message):
    """An earlier attempt as its own record on storage tells it (attempts/<epoch>.json)."""

    attempt: Step
    update_time: Time = Field(description="Its end, or when it last said that it lives.")
    ledger: StepLedger


class Report(Message):
    """Answer of GET http://<pod ip>:29600/v1/report, served by every worker."""

    api_version: str = API_VERSION
    job_uid: str = Field(max_length=64)
    attempt: Step
    worker_index: Step
    sequence: Count = Field(description="Grows with every change; an older one is ignored.")
    stage: Stage
    stage_since: Time
    activity: Count = Field(description="Completed work of any kind; grows in every stage.")
    activity_age_seconds: Seconds = Field(description="Seconds since activity last grew.")
    ranks: list[RankHeartbeat] = Field(default_factory=list, max_length=64)
    # The rest comes from worker 0 only.
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    ledger: StepLedger | None = None
    checkpoints: list[CheckpointRecord] = Field(default_factory=list, max_length=10)
    earlier_attempts: list[AttemptRecord] = Field(
        default_factory=list, max_length=10, description="What earlier attempts left on storage."
    )


class PrepareResult(Message):
    """What only the prepare pod can find out."""

    prepared_digest: str = Field(max_length=80)
    run_digest: str = Field(max_length=80)
    model_revision: str = Field(max_length=80)
    parameter_count: Count
    data: DataSummary
    finished: Output | None = Field(
        default=None, description="Storage already holds the verified model of this very run."
    )

    _clean = field_validator("prepared_digest", "run_digest", "model_revision")(clean)


Outcome = Literal["Succeeded", "Stopped", "Failed"]


class Result(Message):
    """The container's termination message: what it says about its own end."""

    api_version: str = API_VERSION
    outcome: Outcome
    reason: str = Field(max_length=64, pattern="^[A-Za-z][A-Za-z0-9]*$", description="CamelCase.")
    message: str = Field(
        default="", max_length=1024, description="For people: what, where, what to do."
    )
    failed_rank: Step | None = None
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    ledger: StepLedger | None = None
    checkpoints: list[CheckpointRecord] = Field(default_factory=list, max_length=10)
    output: Output | None = None
    prepared: PrepareResult | None = None

    _clean = field_validator("message")(clean)

    def to_termination_message(self) -> str:
        """JSON within the kubelet's limit: old checkpoints, then sources, then text are cut."""
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
