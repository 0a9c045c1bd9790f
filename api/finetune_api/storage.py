"""Files in a run's storage that more than one process reads. See the page on the run contract."""

from pydantic import Field

from finetune_api.base import API_VERSION, Message, Time
from finetune_api.progress import ForwardPass, StepLedger


class RunFile(Message):
    """`run.json`: the owner of the storage. Only a takeover by another job replaces it."""

    api_version: str = API_VERSION
    job_uid: str
    job_name: str
    job_namespace: str
    model_revision: str
    run_digest: str
    forward_pass: ForwardPass | None = None  # absent from earlier versions


class FenceFile(Message):
    """`fence.<epoch>`: the right to write. The holder of the largest epoch has it."""

    api_version: str = API_VERSION
    epoch: int
    job_uid: str
    attempt: int


class AttemptFile(Message):
    """`attempts/<epoch>.json`: the record of an attempt, rewritten every minute and at its end."""

    api_version: str = API_VERSION
    epoch: int
    attempt: int
    job_uid: str
    start_time: Time
    update_time: Time
    outcome: str | None = None
    reason: str | None = None
    run_has_ended: bool | None = Field(
        default=None,
        description="Whether the job has no further attempt after this one. False after a "
        "suspension and after a failure that may be followed by a restart. Unset while the attempt "
        "runs, and by earlier versions.",
    )
    ledger: StepLedger


class ManifestEntry(Message):
    """One file of a checkpoint. The path is relative to the checkpoint's folder."""

    path: str
    size_bytes: int
    xxh3_128: str = Field(alias="xxh3_128", description="Hex digest of the contents.")


class RankFile(Message):
    """`rank-<r>-of-<n>.json`, written after the other files of a rank: they are complete."""

    files: list[ManifestEntry]


class Manifest(Message):
    """`MANIFEST.json`, written last. A folder without a valid one is not a checkpoint."""

    api_version: str = API_VERSION
    step: int
    rows_consumed: int
    tokens_seen: int = 0
    skipped_steps: int = 0
    fence_epoch: int
    attempt: int
    job_uid: str
    run_digest: str
    world_size: int
    zero_stage: int
    creation_time: Time
    validation_loss: float | None = None
    write_seconds: float | None = None
    files: list[ManifestEntry]
