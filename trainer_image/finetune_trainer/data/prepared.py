"""What lies beside the rows in a prepared folder: summary, samples, chat template, stop token."""

from pathlib import Path

from finetune_api import mixture
from finetune_api.progress import DataSummary
from finetune_api.run import RunConfig
from finetune_trainer.data.order import Sequence

CARD = "card.json"
SAMPLE = "sample.txt"
TEMPLATE = "chat_template.jinja"
STOP = "stop_token.json"


def summary(folder: Path, config: RunConfig) -> DataSummary:
    """The summary as this job sees it.

    The job that built the data may have the same files at other places, and other weights.
    """
    data = DataSummary.model_validate_json((folder / CARD).read_text())
    sources = zip(config.dataset.train, data.sources, strict=True)
    named = [found.replace(source=source.source) for source, found in sources]
    rows = [source.rows for source in named]
    weights = _weights(config) if all(rows) else ()  # refused by whoever prepares
    counts = mixture.epoch_counts(rows, weights)
    return data.replace(sources=named, epoch_rows=sum(counts))


def sequence(config: RunConfig, folder: Path) -> Sequence:
    """The order in which this job trains on the rows."""
    rows = tuple(source.rows for source in summary(folder, config).sources)
    return Sequence(rows, config.training.seed, _weights(config))


def chat_template(folder: Path) -> str | None:
    """The template that the data was made with, where it is not the tokenizer's own."""
    path = folder / TEMPLATE
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _weights(config: RunConfig) -> tuple[float, ...]:
    """All sources have one or none has."""
    return tuple(s.weight for s in config.dataset.train if s.weight is not None)
