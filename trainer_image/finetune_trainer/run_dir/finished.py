"""The finished model: complete only with `export.json`, which is written last."""

from pathlib import Path

from finetune_api.base import Message
from finetune_api.progress import Output
from finetune_trainer.run_dir.paths import RunPaths

FILE = "export.json"


class ExportCard(Message):
    """`final/export.json`: what was exported, and that it was loaded back."""

    job_uid: str
    run_digest: str
    step: int
    size_bytes: int


def read(paths: RunPaths, job_uid: str, run_digest: str) -> Output | None:
    """The finished model of exactly this run, None when there is none."""
    card = _card(paths.final, job_uid, run_digest)
    if card is None:
        return None
    return Output(location=paths.uri(paths.final), size_bytes=card.size_bytes, verified=True)


def is_complete(folder: Path, job_uid: str, run_digest: str) -> bool:
    """Whether a folder holds the finished model of exactly this run."""
    return _card(folder, job_uid, run_digest) is not None


def _card(folder: Path, job_uid: str, run_digest: str) -> ExportCard | None:
    try:
        card = ExportCard.model_validate_json((folder / FILE).read_text())
        there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except (OSError, ValueError):
        return None
    if (card.job_uid, card.run_digest) != (job_uid, run_digest):
        return None
    return card if there >= card.size_bytes else None  # else somebody moved the weights away
