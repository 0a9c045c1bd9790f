"""The finished model: complete only with `export.json`, which is written last."""

from finetune_api.base import Message
from finetune_api.progress import Output
from finetune_trainer.paths import RunPaths

FILE = "export.json"


class ExportCard(Message):
    """`final/export.json`: what was exported, and that it was loaded back."""

    job_uid: str
    run_digest: str
    step: int
    size_bytes: int


def read(paths: RunPaths, job_uid: str, run_digest: str) -> Output | None:
    """The finished model of exactly this run, None when there is none."""
    try:
        card = ExportCard.model_validate_json((paths.final / FILE).read_text())
    except (OSError, ValueError):
        return None
    if (card.job_uid, card.run_digest) != (job_uid, run_digest):
        return None
    there = sum(path.stat().st_size for path in paths.final.iterdir() if path.is_file())
    if there < card.size_bytes:  # somebody moved the weights away
        return None
    return Output(location=paths.uri(paths.final), size_bytes=card.size_bytes, verified=True)
