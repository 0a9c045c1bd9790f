"""The messages between the operator and a pod: RunConfig into it, Report and Result out of it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator
from pydantic.alias_generators import to_camel
from pydantic_core import from_json

from finetune_api import spec
from finetune_api.base import API_VERSION, Count, Message, Seconds, Step, Time, clean
from finetune_api.memory import ModelFacts
from finetune_api.names import MAX_ATTEMPTS, MAX_CHECKPOINTS, RESULT_MAX_BYTES
from finetune_api.progress import (
    CheckpointRecord,
    DataSummary,
    Evaluation,
    ForwardPass,
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
    result_max_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="The most bytes of the termination message that this pod's kubelet keeps. The "
        "kubelet divides its limit of a pod by all containers. Default: 4096.",
    )
    unfinished_owners: list[str] | None = Field(
        default=None,
        description="Uids of other jobs that have not ended and have the same path as their "
        "checkpoints.storage. Their run is never taken over. Unset: the operator does not say.",
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
    waiting_for: str | None = Field(
        default=None,
        max_length=512,
        description="What the worker waits for while the gang was never complete, for example the "
        "address of worker 0, or workers that have not joined. Unset once all have joined.",
    )
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

    _clean = field_validator("waiting_for")(clean)


MAX_LEFT_OUT = 3
"""Examples of each kind that are named."""
MOST_NAMED = 12
"""Examples that are named in all."""


Doubt = Annotated[str, AfterValidator(clean), Field(max_length=400)]


class LeftOut(Message):
    """An example, or all of a file, that nothing is learned from."""

    file: str = Field(max_length=512, description="Address of the file.")
    row: str = Field(
        default="", max_length=32, description="Its place, such as line 7; empty for all rows."
    )
    why: str = Field(max_length=160)

    _clean = field_validator("file", "row", "why")(clean)

    def __str__(self) -> str:
        return f"{self.file} {self.row}".rstrip() + f": {self.why}"


class PreparedData(DataSummary):
    """The card of prepared data (card.json): its summary, and what a person should look at."""

    left_out: list[LeftOut] = Field(
        default_factory=list,
        max_length=MOST_NAMED,
        description="The first examples of each kind that were left out.",
    )
    reasoning_left_out: int = Field(
        default=0,
        description="The number of examples in which the chat template leaves out the reasoning of "
        "messages that are not trained on.",
    )
    warnings: list[Doubt] = Field(
        default_factory=list, max_length=4, description="What is doubtful about the data."
    )


class PrepareResult(Message):
    """The facts that only the prepare pod can find out."""

    prepared_digest: str = Field(max_length=80)
    run_digest: str = Field(max_length=80)
    model_revision: str = Field(max_length=80)
    parameter_count: Count
    forward_pass: ForwardPass | None = Field(
        default=None, description="What is computed exactly; absent from earlier versions."
    )
    model_facts: ModelFacts | None = Field(
        default=None,
        description="What the memory of a device depends on. Unset: it could not be measured.",
    )
    finished: Output | None = Field(
        default=None,
        description="The verified model, if storage already holds the one of exactly this run.",
    )
    data: DataSummary
    # These and the lists at the end of the summary can be left out, so nothing may follow them.
    warnings: list[Doubt] | None = Field(default=None, max_length=4)
    left_out: list[LeftOut] | None = Field(default=None, max_length=MOST_NAMED)

    _clean = field_validator("prepared_digest", "run_digest", "model_revision")(clean)


Outcome = Literal["Succeeded", "Stopped", "Failed"]


class Result(Message):
    """The container's termination message: how and why it ended.

    The order of the fields is the order in the message, whose end a kubelet may cut off: what the
    operator decides by comes first.
    """

    api_version: str = API_VERSION
    outcome: Outcome
    reason: str = Field(max_length=64, pattern="^[A-Za-z][A-Za-z0-9]*$", description="CamelCase.")
    output: Output | None = None
    prepared: PrepareResult | None = None
    ledger: StepLedger | None = None
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    message: str = Field(
        default="",
        max_length=1024,
        description="Text for people: what happened, where, and what to do.",
    )
    checkpoints: list[CheckpointRecord] = Field(default_factory=list, max_length=MAX_CHECKPOINTS)

    _clean = field_validator("message")(clean)

    @classmethod
    def from_termination_message(cls, text: str) -> "Result":
        """Read a termination message, whose end may have been cut off. Raise ValueError if invalid.

        An incomplete field is left out, except for what is complete in itself: the beginning of the
        message, the first checkpoints, and a preparation without the lists at its end.
        """
        try:
            found = from_json(text)
        except ValueError:
            found = _without_cut_field(from_json(text, allow_partial="trailing-strings"))
        return cls.model_validate(found)

    def to_termination_message(self, max_bytes: int | None = None) -> str:
        """Return JSON of at most `max_bytes`, by default what the kubelet reads of one container.

        What does not fit is left out, the least important first: old checkpoints, the ignored
        columns and the sources, the end of the message, and then fields whose values are known
        elsewhere.
        """
        limit = min(RESULT_MAX_BYTES, max_bytes or RESULT_MAX_BYTES)
        result = self
        while len((encoded := result.to_json()).encode()) > limit:
            result = result._shortened()
        return encoded

    def _shortened(self) -> "Result":
        """Return the result with a little less in it."""
        prepared = self.prepared
        if len(self.checkpoints) > 1:
            return self.replace(checkpoints=self.checkpoints[:-1])
        if prepared and prepared.left_out:
            return self.replace(prepared=prepared.replace(left_out=prepared.left_out[:-1] or None))
        full = [name for name in _LISTS if prepared and getattr(prepared.data, name)]
        if prepared and full:
            data = prepared.data.replace(**{full[0]: []})
            return self.replace(prepared=prepared.replace(data=data))
        if len(self.message) > _SHORT_MESSAGE:
            return self.replace(message=self.message[: len(self.message) // 2])
        progress = self.progress
        if progress and (progress.checkpoint_problem or progress.kernel_problem):
            progress = progress.replace(checkpoint_problem=None, kernel_problem=None)
            return self.replace(progress=progress)
        if self.checkpoints or self.evaluation:
            return self.replace(checkpoints=[], evaluation=None)
        if self.message:
            return self.replace(message="")
        if prepared and prepared.warnings:
            return self.replace(prepared=prepared.replace(warnings=None))
        if prepared and prepared.model_facts:  # then the plan has careful defaults
            return self.replace(prepared=prepared.replace(model_facts=None))
        if prepared and prepared.finished:  # the gang finds it as well
            return self.replace(prepared=prepared.replace(finished=None))
        return Result(outcome=self.outcome, reason=self.reason)


_LISTS = ("ignored_columns", "sources")
"""The lists at the end of DataSummary, the last one first."""
_LIST_KEYS = tuple(map(to_camel, _LISTS))
_SHORT_MESSAGE = 160  # characters; other fields are left out before it becomes shorter


def _without_cut_field(found: Any) -> dict[str, Any]:
    """Return the fields of a message that was cut off, without the last, incomplete one."""
    if not isinstance(found, dict) or not found:
        raise ValueError("not the beginning of a JSON object")
    *complete, (name, value) = found.items()
    result = dict(complete)
    if name == "message":
        result[name] = value
    elif name == "checkpoints" and isinstance(value, list):
        result[name] = value[:-1]
    elif name == "prepared" and isinstance(value, dict):
        data, end = value.get("data"), next(reversed(value), "")
        if data and end in ("warnings", "leftOut"):
            result[name] = {key: item for key, item in value.items() if key != end}
        elif isinstance(data, dict) and (last := next(reversed(data), "")) in _LIST_KEYS:
            result[name] = value | {"data": {k: v for k, v in data.items() if k != last}}
    return result
