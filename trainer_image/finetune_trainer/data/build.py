"""Building the prepared folder: read, render, mask, pack, count."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import DataSummary, SourceSummary
from finetune_api.run import RunConfig
from finetune_api.spec import DataSource
from finetune_trainer.data import formats, packing
from finetune_trainer.data.render import Document, Renderer
from finetune_trainer.data.rows import RowWriter
from finetune_trainer.errors import TrainerError
from finetune_trainer.reporter import Reporter

_log = logging.getLogger(__name__)
MAX_DROPPED = 0.05
_SAMPLES = 3
_SAY_EVERY = 5.0  # s


@dataclass
class Count:
    """What happened to the examples of one split."""

    examples: int = 0
    rows: int = 0
    tokens: int = 0
    trained: int = 0
    useless: int = 0
    overlong: list[int] = field(default_factory=list)  # lengths of dropped examples, tokens

    @property
    def seen(self) -> int:
        """Examples read."""
        return self.examples + self.useless + len(self.overlong)


class Builder:
    """Writes both splits of one run into a folder."""

    def __init__(
        self,
        config: RunConfig,
        renderer: Renderer,
        folder: Path,
        report: Reporter,
        files: Callable[[RunConfig, DataSource, Reporter], list[tuple[Path, str]]],
    ) -> None:
        self._config, self._renderer, self._files = config, renderer, files
        self._folder, self._report = folder, report
        self._samples: list[str] = []
        self._said = time.monotonic()

    def build(self) -> DataSummary:
        """Both splits; TrainerError when the data is not what anybody wants to train on."""
        dataset, length = self._config.dataset, self._config.training.sequence_length
        train, sources = self._split("train", dataset.train)
        validation, _ = self._split("validation", dataset.validation or [])
        (self._folder / "sample.txt").write_text("\n\n".join(self._samples) + "\n")
        return DataSummary(
            examples=train.examples,
            rows=train.rows,
            tokens=train.tokens,
            trained_tokens=train.trained,
            packing_efficiency=round(train.tokens / (train.rows * length), 4),
            dropped_overlong=len(train.overlong),
            dropped_useless=train.useless,
            validation_examples=validation.examples,
            validation_rows=validation.rows,
            validation_trained_tokens=validation.trained,
            sources=sources,
        )

    def _split(self, split: str, sources: list[DataSource]) -> tuple[Count, list[SourceSummary]]:
        total, summaries = Count(), []
        training = self._config.training
        length, packed = training.sequence_length, training.packing
        with RowWriter(self._folder, split) as writer:
            for source in sources:
                rows, examples = total.rows, total.examples
                for row in packing.pack(self._documents(source, total), length, packing=packed):
                    writer.add(row)
                    total.rows += 1
                rows, examples = total.rows - rows, total.examples - examples
                summaries.append(SourceSummary(source=source.source, rows=rows, examples=examples))
        if sources:
            self._judge(split, total)
        return total, summaries

    def _documents(self, source: DataSource, count: Count) -> Iterator[Document]:
        found = self._files(self._config, source, self._report)
        read = (formats.read(path, name, source.format) for path, name in found)
        for example in chain.from_iterable(read):
            self._report.advance()
            self._say(source.source, count)
            document = self._renderer.render(example)
            if document is None:
                count.useless += 1
                continue
            if len(document.tokens) > self._config.training.sequence_length:
                count.overlong.append(len(document.tokens))
                continue
            if len(self._samples) < _SAMPLES:
                self._samples.append(f"{example.where}\n{self._renderer.show(document)}")
                _log.info("trained parts in «»: %s", self._samples[-1])
            count.examples += 1
            count.tokens += len(document.tokens)
            count.trained += int(document.trained.sum())
            yield document

    def _say(self, source: str, count: Count) -> None:
        if time.monotonic() - self._said > _SAY_EVERY:
            self._said = time.monotonic()
            _log.info("%s: %d examples, %d tokens", source, count.seen, count.tokens)

    def _judge(self, split: str, count: Count) -> None:
        length = self._config.training.sequence_length
        where = f"dataset.{split}"
        if not count.seen:
            raise TrainerError(ExitCode.BAD_DATA, f"{where}: no example in any source; add some")
        if len(count.overlong) > MAX_DROPPED * count.seen or not (count.examples or count.useless):
            keep = sorted(count.overlong)[max(0, len(count.overlong) - 1 - count.seen // 100)]
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {len(count.overlong)} of {count.seen} examples are longer than "
                f"sequenceLength {length}; at most 5 % may be dropped; training.sequenceLength "
                f"{keep} keeps 99 %",
            )
        if count.useless > MAX_DROPPED * count.seen or not count.examples:
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {count.useless} of {count.seen} examples are empty or train no token; "
                "at most 5 % may be dropped; clean the data, or look at dataset.lossOn",
            )
