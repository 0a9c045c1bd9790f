"""Building the prepared folder: read, render, mask, pack, count.

First every source becomes parts (data/parts.py), by all processors, then parts become packed rows,
in one pass. The result depends on the input alone, not on the number of processes nor on how often
the builder was killed.
"""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import DataSummary, SourceSummary
from finetune_api.run import RunConfig
from finetune_api.spec import DataSource
from finetune_trainer.common import machine
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import prepared, read
from finetune_trainer.data.count import Count
from finetune_trainer.data.parts import Held, Parts
from finetune_trainer.data.pool import Pool, Task
from finetune_trainer.data.progress import Progress
from finetune_trainer.data.shapes import shape_of
from finetune_trainer.data.source_file import SourceFile
from finetune_trainer.data.split import Split, Written, total
from finetune_trainer.data.work import Recipe

_log = logging.getLogger(__name__)
_SAMPLES = 3
_ALONE = 8 << 20  # bytes of input that one process has read before others have started
_OWN_BYTES, _PROCESS_BYTES = 1 << 30, 300 << 20  # memory of this process, of each other one
_ALL = 2.0**64

Files = list[tuple[DataSource, list[SourceFile]]]


def processes(size: int) -> int:
    """How many for so many bytes of input: processors, as far as memory reaches."""
    if size < _ALONE:
        return 1
    room = machine.memory_limit()
    most = machine.usable_cpus()
    if room is not None:
        most = min(most, (room - _OWN_BYTES) // _PROCESS_BYTES)
    return max(1, most)


class Builder:
    """Writes both splits of one run into a folder, with finished parts beside it."""

    def __init__(
        self,
        config: RunConfig,
        recipe: Recipe,
        folder: Path,
        parts: Path,
        report: Reporter,
    ) -> None:
        self._config, self._recipe = config, recipe
        self._renderer = recipe.renderer()
        self._folder, self._parts, self._report = folder, parts, report
        self._length = config.training.sequence_length

    def build(self, train: Files, validation: Files) -> DataSummary:
        """Both splits; TrainerError when the data is not what anybody wants to train on."""
        every = [*train, *validation]
        size = sum(file.path.stat().st_size for _, files in every for file in files)
        progress = Progress(size, self._report)
        with Pool(self._renderer, self._recipe, processes(size)) as pool:
            parts = [
                self._tokenised(number, source, files, pool, progress)
                for number, (source, files) in enumerate(every)
            ]
        trained, held_out = parts[: len(train)], parts[len(train) :]
        counted = self._judged("dataset.train", trained)
        if validation:
            self._judged("dataset.validation", held_out)
        self._samples(trained)
        rows, others, duplicates = self._rows(trained, held_out)
        written, other = total(rows), total(others)
        return DataSummary(
            examples=written.examples,
            rows=written.rows,
            tokens=written.tokens,
            trained_tokens=written.trained,
            packing_efficiency=round(written.tokens / (written.rows * self._length), 4),
            dropped_overlong=counted.dropped_overlong,
            truncated=counted.truncated,
            split=counted.split,
            dropped_empty=counted.empty,
            dropped_untrained=counted.untrained,
            invalid=counted.invalid,
            duplicates=duplicates,
            validation_examples=other.examples,
            validation_rows=other.rows,
            validation_trained_tokens=other.trained,
            sources=[
                SourceSummary(source=source.source, rows=own.rows, examples=own.examples)
                for (source, _), own in zip(train, rows, strict=True)
            ],
        )

    def _rows(
        self, trained: list[Parts], held_out: list[Parts]
    ) -> tuple[list[Written], list[Written], int]:
        """Both splits written; and how many training examples are copies."""
        fraction = self._config.dataset.validation_fraction
        packed = self._config.training.packing
        train = Split(self._folder, "train", self._length, self._report)
        other = Split(self._folder, "validation", self._length, self._report)

        def is_held_out(held: Held) -> bool:
            return fraction is not None and held.digest / _ALL < fraction

        rows = train.write(trained, lambda held: not is_held_out(held), packed=packed)
        if fraction is None:
            others = other.write(held_out, lambda _: True, packed=packed)
        else:
            others = other.write(trained, is_held_out, packed=packed)
            _check_fraction(fraction, total(rows), total(others))
        other.duplicates()
        return rows, others, train.duplicates()

    def _tokenised(
        self,
        number: int,
        source: DataSource,
        files: list[SourceFile],
        pool: Pool,
        progress: Progress,
    ) -> Parts:
        """The finished parts of one source."""
        parts = Parts(self._parts, number)
        progress.begin(source.source, [file.path.stat().st_size for file in files])
        if parts.is_complete:
            progress.skip(sum(part.tokens for part in parts.finished))
            return parts
        if parts.blocks:
            _log.info("%s: going on after %d finished parts", source.source, len(parts.finished))
        tasks = islice(self._tasks(source, files, progress), parts.blocks, None)
        for (_, block), chunk in pool.in_order(tasks):
            parts.add(block.place, chunk)
            progress.add(chunk.count.seen, len(chunk.tokens))
        parts.complete()
        return parts

    def _tasks(
        self, source: DataSource, files: list[SourceFile], progress: Progress
    ) -> Iterator[Task]:
        """The blocks of a source; the first row of all decides the shape."""
        shape = None
        for place, file in enumerate(files):
            for block in read.blocks(file.path, file.name):
                if shape is None:
                    row = next(read.rows(block), None)
                    if row is None:
                        continue  # blank lines
                    shape = shape_of(row, source, chat=self._renderer.has_template)
                progress.read(place, block.done)
                yield shape, block

    def _judged(self, where: str, parts: list[Parts]) -> Count:
        found = Count()
        for own in parts:
            found.add(own.count())
        found.judge(where, self._length, self._config.dataset.overlong)
        return found

    def _samples(self, parts: list[Parts]) -> None:
        """What a person looks at before spending money: into the log and beside the rows."""
        texts = []
        examples = (held for own in parts for held in own.examples())
        for held in islice(examples, _SAMPLES):
            texts.append(f"{held.where}\n{self._renderer.show(held.documents[0])}")
            _log.info("trained parts in «»: %s", texts[-1])
        (self._folder / prepared.SAMPLE).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        stop = self._renderer.stop_token
        if stop is not None:
            (self._folder / prepared.STOP).write_text(json.dumps(stop), encoding="utf-8")
        if self._recipe.template is not None:
            (self._folder / prepared.TEMPLATE).write_text(self._recipe.template, encoding="utf-8")


def _check_fraction(fraction: float, rows: Written, others: Written) -> None:
    if not rows.rows or not others.rows:
        side = "held out" if rows.rows else "left to train on"
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"dataset.validationFraction {fraction:g}: of {rows.examples + others.examples} "
            f"examples none is {side}; change it, add data, or name dataset.validation",
        )
