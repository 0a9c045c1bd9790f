"""The files beside the rows in a prepared folder: summary, samples, chat template, stop token."""

from collections.abc import Iterable
from collections.abc import Sequence as Sources
from pathlib import Path

from finetune_api import mixture
from finetune_api.progress import DataSummary
from finetune_api.spec import TrainSource
from finetune_trainer.data.order import Sequence

CARD = "card.json"
SAMPLE = "sample.txt"
TEMPLATE = "chat_template.jinja"
STOP = "stop_token.json"


def summary(folder: Path, sources: Sources[TrainSource]) -> DataSummary:
    """Return the summary of prepared data with the addresses and weights of a job's sources.

    The job that built the data may have named the same files by other addresses and weights.
    """
    data = DataSummary.model_validate_json((folder / CARD).read_text())
    named = [
        found.replace(source=source.source)
        for source, found in zip(sources, data.sources, strict=True)
    ]
    rows = [source.rows for source in named]
    weights = _weights(sources) if all(rows) else ()  # preparation refuses weights without rows
    counts = mixture.epoch_counts(rows, weights)
    return data.replace(sources=named, epoch_rows=sum(counts))


def sequence(folder: Path, sources: Sources[TrainSource], seed: int) -> Sequence:
    """Return the order in which a job trains on the rows of its sources."""
    rows = tuple(source.rows for source in summary(folder, sources).sources)
    return Sequence(rows, seed, _weights(sources))


def chat_template(folder: Path) -> str | None:
    """Return the chat template of the prepared data, or None if it is the tokenizer's own."""
    path = folder / TEMPLATE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _weights(sources: Iterable[TrainSource]) -> tuple[float, ...]:
    """Return the weights; either all sources have one or none has."""
    return tuple(source.weight for source in sources if source.weight is not None)
