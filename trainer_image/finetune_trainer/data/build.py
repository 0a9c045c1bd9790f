"""Builds the rows of a prepared folder: read, render, mask, pack, count.

First all processes turn every source into parts (`build_parts.py`). Then this process packs the
parts into rows, in one pass. The result depends on the input alone, not on the number of processes
nor on how often a builder was killed. Progress is logged every few seconds, and reported to the
supervisor per block.
"""

import json
import logging
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import SourceSummary
from finetune_api.run import MAX_LEFT_OUT, MOST_NAMED, PreparedData
from finetune_api.spec import DataSource
from finetune_trainer.common import machine
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import doubts, prepared, read
from finetune_trainer.data.block import Block, Row
from finetune_trainer.data.build_parts import SourceParts, TokenizedExample
from finetune_trainer.data.columnar_files import columns_without_nulls
from finetune_trainer.data.dropped_examples import ExampleCounts, overlong_policy
from finetune_trainer.data.packing import SplitWriter, Written, total
from finetune_trainer.data.row_keys import listed
from finetune_trainer.data.source_file import SourceFile, SourceFiles
from finetune_trainer.data.source_format import MOST_ROWS, known_columns, shape_of
from finetune_trainer.data.tokenize_block import Recipe
from finetune_trainer.data.worker_pool import Task, WorkerPool

_log = logging.getLogger(__name__)
_LOG_INTERVAL = 5.0  # s
_SAMPLES = 3
# Bytes of input that one process has tokenized before others have started.
_ONE_PROCESS_BYTES = 8 << 20
_OWN_BYTES, _WORKER_BYTES = 1 << 30, 300 << 20  # memory of this process, of each other one
_DIGESTS = 2.0**64
_FIRST_BLOCKS = 8  # at most, in which the rows are that decide the format of a source


class BuildProgress:
    """How much of the input was read and tokenized."""

    def __init__(self, size: int, report: Reporter) -> None:
        self._size, self._report = max(1, size), report
        self._before = self._read = self._examples = self._tokens = self._new = 0
        self._source = ""
        self._files: list[int] = []
        self._started = self._logged = time.monotonic()

    def begin(self, source: str, files: list[int]) -> None:
        """Begin the next source, given the sizes of its files in bytes."""
        self._before += sum(self._files)
        self._source, self._files, self._read = source, files, 0

    def skip(self, tokens: int) -> None:
        """Count a source that an earlier builder has finished."""
        self._tokens += tokens
        self._read = sum(self._files)
        self._report.advance()

    def read(self, file: int, done: int) -> None:
        """Set the number of bytes of a file that were read."""
        self._read = sum(self._files[:file]) + min(done, self._files[file])
        self._report.advance()

    def add(self, examples: int, tokens: int) -> None:
        """Count the examples and tokens of a finished block."""
        self._examples += examples
        self._tokens += tokens
        self._new += tokens
        self._report.advance(examples)
        now = time.monotonic()
        if now - self._logged < _LOG_INTERVAL:
            return
        self._logged = now
        share = max(1, self._before + self._read) / self._size
        seconds = now - self._started
        _log.info(
            "preparing data: %.0f %% of %.1f MB, %d examples, %.1f M tokens, %.0f tokens/s, about "
            "%.0f s left; %s",
            100 * share,
            self._size / 1e6,
            self._examples,
            self._tokens / 1e6,
            self._new / seconds,
            seconds * (1 - share) / share,
            self._source,
        )


def processes(size: int) -> int:
    """Return the number of processes for so many bytes of input: bounded by CPUs and memory."""
    if size < _ONE_PROCESS_BYTES:
        return 1
    room = machine.memory_limit()
    most = machine.usable_cpus()
    if room is not None:
        most = min(most, (room - _OWN_BYTES) // _WORKER_BYTES)
    return max(1, most)


class Builder:
    """The builder of both splits of a prepared folder, with finished parts in another folder."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        parts: Path,
        report: Reporter,
        *,
        packing: bool,
        validation_fraction: float | None,
    ) -> None:
        self._recipe, self._packing, self._fraction = recipe, packing, validation_fraction
        self._renderer = recipe.renderer()
        self._folder, self._parts, self._report = folder, parts, report

    def build(self, train: SourceFiles, validation: SourceFiles) -> PreparedData:
        """Write both splits; TrainerError (65) if too much of the data cannot be trained on."""
        every = [*train, *validation]
        size = sum(file.path.stat().st_size for _, files in every for file in files)
        progress = BuildProgress(size, self._report)
        with WorkerPool(self._renderer, self._recipe, processes(size)) as pool:
            parts = [
                self._tokenize(number, source, files, pool, progress)
                for number, (source, files) in enumerate(every)
            ]
        trained, held_out = parts[: len(train)], parts[len(train) :]
        counts = self._checked_counts("dataset.train", train, trained)
        named = list(counts.named())
        warnings = doubts.without_rows(train, trained)
        if validation:
            named += self._checked_counts("dataset.validation", validation, held_out).named()
            warnings += doubts.without_rows(validation, held_out)
        if counts.ignored:
            _log.info("columns without effect: %s", ", ".join(listed(counts.ignored)))
        if counts.reasoning_left_out:
            _log.info(
                "examples in which the chat template leaves out the reasoning of messages that "
                "are not trained on: %d",
                counts.reasoning_left_out,
            )
        self._write_samples(trained)
        rows, others, duplicates, shared = self._write_splits(trained, held_out)
        written, other = total(rows), total(others)
        warnings += doubts.special_tokens(counts.special, counts.kept)
        warnings += doubts.shared_examples(train, validation, shared, other.examples)
        for warning in warnings:
            _log.warning("%s", warning)
        return PreparedData(
            left_out=named[:MOST_NAMED],
            warnings=[warning[:400] for warning in warnings[:4]],
            examples=written.examples,
            rows=written.rows,
            tokens=written.tokens,
            trained_tokens=written.trained,
            packing_efficiency=round(written.tokens / (written.rows * self._recipe.length), 4),
            dropped_overlong=counts.dropped_overlong,
            truncated=counts.truncated,
            split=counts.split,
            dropped_empty=counts.empty,
            dropped_untrained=counts.untrained,
            invalid=counts.invalid,
            with_special_tokens=counts.special,
            reasoning_left_out=counts.reasoning_left_out,
            duplicates=duplicates,
            validation_examples=other.examples,
            validation_rows=other.rows,
            validation_trained_tokens=other.trained,
            ignored_columns=listed(counts.ignored),
            sources=[
                SourceSummary(
                    source=source.source,
                    rows=own.rows,
                    examples=own.examples,
                    format=source_parts.format,
                )
                for (source, _), own, source_parts in zip(train, rows, trained, strict=True)
            ],
        )

    def _tokenize(
        self,
        number: int,
        source: DataSource,
        files: list[SourceFile],
        pool: WorkerPool,
        progress: BuildProgress,
    ) -> SourceParts:
        """Return the finished parts of one source."""
        parts = SourceParts(self._parts, number)
        progress.begin(source.source, [file.path.stat().st_size for file in files])
        if parts.is_complete:
            progress.skip(sum(part.tokens for part in parts.finished))
            return parts
        if parts.blocks:
            _log.info("%s: continuing after %d finished parts", source.source, len(parts.finished))
        tasks = islice(self._tasks(source, files, progress), parts.blocks, None)
        warned: set[str] = set()
        for (shape, block), tokenized in pool.in_order(tasks):
            _warn_of_lost_nulls(source, block, warned)
            parts.add(block.place, tokenized, shape.title)
            progress.add(tokenized.count.seen, len(tokenized.tokens))
        parts.complete()
        return parts

    def _tasks(
        self, source: DataSource, files: list[SourceFile], progress: BuildProgress
    ) -> Iterator[Task]:
        """Yield the blocks of a source; its first rows decide the shape of all."""
        columns = known_columns(source)
        found = (
            (place, block)
            for place, file in enumerate(files)
            for block in read.blocks(file.path, file.name, columns)
        )
        first: list[tuple[int, Block]] = []
        rows: list[Row] = []
        for place, block in islice(found, _FIRST_BLOCKS):
            first.append((place, block))
            rows += islice(read.rows(block), MOST_ROWS - len(rows))
            if len(rows) == MOST_ROWS:
                break
        if not rows:
            return
        shape = shape_of(rows, source, chat=self._renderer.has_template)
        overlong_policy(self._recipe.overlong, shape.name == "text", rows[0][0])
        rows.clear()
        for place, block in chain(first, found):
            progress.read(place, block.done)
            yield shape, block

    def _checked_counts(
        self, where: str, sources: SourceFiles, parts: list[SourceParts]
    ) -> ExampleCounts:
        """Return the counts of a split; TrainerError (65) if too much of it is left out."""
        counts = ExampleCounts()
        empty = []
        for (_, files), own in zip(sources, parts, strict=True):
            counts.add(own.count())
            empty += [file.name for file in files if file.name not in own.files]
        counts.left_out["file"] = [(name, "", "no row in it") for name in empty[:MAX_LEFT_OUT]]
        for one in counts.named():
            _log.warning("left out: %s", one)
        if not counts.seen:
            more = f" and {len(empty) - 1} more files" if len(empty) > 1 else ""
            raise TrainerError(ExitCode.BAD_DATA, f"{where}: no row in {empty[0]}{more}; add some")
        counts.check(where, self._recipe.length, self._recipe.longest, self._recipe.overlong)
        return counts

    def _write_samples(self, parts: list[SourceParts]) -> None:
        """Log some examples and write them beside the rows, for a check before devices are used.

        Also writes the stop token and the job's own chat template, which the export needs.
        """
        texts = []
        examples = (example for own in parts for example in own.examples())
        for example in islice(examples, _SAMPLES):
            texts.append(f"{example.where}\n{self._renderer.show(example.documents[0])}")
            _log.info("trained parts in «»: %s", texts[-1])
        (self._folder / prepared.SAMPLE).write_text("\n\n".join(texts) + "\n", encoding="utf-8")
        stop = self._renderer.stop_token
        if stop is not None:
            (self._folder / prepared.STOP).write_text(json.dumps(stop), encoding="utf-8")
        if self._recipe.template is not None:
            (self._folder / prepared.TEMPLATE).write_text(self._recipe.template, encoding="utf-8")

    def _write_splits(
        self, trained: list[SourceParts], held_out: list[SourceParts]
    ) -> tuple[list[Written], list[Written], int, int]:
        """Write both splits; return their counts per source, and two numbers of examples.

        The first is that of duplicates in training, the second that of validation examples from
        `held_out` that are trained on as well.
        """
        fraction, length = self._fraction, self._recipe.length
        train = SplitWriter(self._folder, "train", length, self._report)
        other = SplitWriter(self._folder, "validation", length, self._report)

        def is_held_out(example: TokenizedExample) -> bool:
            return fraction is not None and example.digest / _DIGESTS < fraction

        rows = train.write(trained, lambda one: not is_held_out(one), packed=self._packing)
        if fraction is None:
            others = other.write(held_out, lambda _: True, packed=self._packing)
        else:
            others = other.write(trained, is_held_out, packed=self._packing)
            _check_fraction(fraction, total(rows), total(others))
        shared = train.shared(other) if fraction is None else 0
        other.duplicates()
        return rows, others, train.duplicates(), shared


def _warn_of_lost_nulls(source: DataSource, block: Block, warned: set[str]) -> None:
    """Warn once of each column whose tool calls cannot contain nulls."""
    for column in columns_without_nulls(block):
        if column not in warned:
            warned.add(column)
            _log.warning(
                "%s: nulls in the arguments and parameters of tools in the column %r are left out, "
                "because it stores structs, in which a null and a missing key are the same; "
                "store them as JSON text to keep them",
                source.source,
                column,
            )


def _check_fraction(fraction: float, rows: Written, others: Written) -> None:
    if not rows.rows or not others.rows:
        side = "held out" if rows.rows else "left to train on"
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"dataset.validationFraction {fraction:g}: of {rows.examples + others.examples} "
            f"examples none is {side}; change it, add data, or name dataset.validation",
        )
