"""The folder `final` with the exported model, which is complete only if it holds `export.json`."""

from pathlib import Path

from finetune_api.base import Message
from finetune_api.progress import Output
from finetune_trainer.run_dir.paths import RunPaths

FILE = "export.json"
"""Name of the file that is written last."""


class ExportCard(Message):
    """The contents of `final/export.json`. It exists only after the model was loaded back."""

    job_uid: str
    run_digest: str
    step: int
    size_bytes: int


def read(paths: RunPaths, job_uid: str, run_digest: str) -> Output | None:
    """Return the exported model of exactly this run, or None if it is missing or incomplete."""
    card = _complete(paths.final, job_uid, run_digest)
    if card is None:
        return None
    return Output(location=paths.uri(paths.final), size_bytes=card.size_bytes, verified=True)


def is_complete(folder: Path, job_uid: str, run_digest: str) -> bool:
    """Return whether a folder holds the complete exported model of exactly this run."""
    return _complete(folder, job_uid, run_digest) is not None


def _complete(folder: Path, job_uid: str, run_digest: str) -> ExportCard | None:
    try:
        card = ExportCard.model_validate_json((folder / FILE).read_text())
        present = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except (OSError, ValueError):
        return None
    if (card.job_uid, card.run_digest) != (job_uid, run_digest):
        return None
    return card if present >= card.size_bytes else None  # else weights were moved away
