"""Which examples are dropped, truncated or split, and the limits above which the job fails."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.run import MAX_LEFT_OUT, LeftOut
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.render import Document

OverlongPolicy = Literal["Drop", "Truncate", "Split", "Fail"]
_ROUND = 16  # tokens; bounds the number of different lengths that are counted
MAX_DROPPED = 0.05
_MAX_KEYS = 1000


def overlong_policy(wanted: str, is_text: bool, where: str) -> OverlongPolicy:
    """Return what dataset.overlong means for an example; TrainerError (64) if it is not allowed.

    Only a text can be split: half of a conversation has no meaning.
    """
    if wanted == "Split" and not is_text:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"dataset.overlong Split works only for documents (Text), which {where} is not; "
            "allowed are Auto, Drop, Truncate, Fail",
        )
    if wanted == "Auto":
        return "Split" if is_text else "Drop"
    policies: dict[str, OverlongPolicy] = {
        "Drop": "Drop",
        "Truncate": "Truncate",
        "Split": "Split",
        "Fail": "Fail",
    }
    return policies[wanted]


def overlong_pieces(document: Document, length: int, how: OverlongPolicy) -> list[Document]:
    """Return the parts of an overlong document that are kept, each of at most `length` tokens.

    The first token of a later part has no loss, because its context is in the part before.
    """
    if how in ("Drop", "Fail"):
        return []
    size = len(document.tokens)
    starts = range(0, size, length) if how == "Split" else [0]
    kept = []
    for begin in starts:
        trained = document.trained[begin : begin + length].copy()
        trained[0] = 0
        if trained.any():
            kept.append(Document(document.tokens[begin : begin + length], trained))
    return kept


def count_overlong(lengths: dict[int, int], length: int) -> None:
    """Count one more overlong example in `lengths`: tokens (rounded up) -> number of examples."""
    rounded = -(-length // _ROUND) * _ROUND
    lengths[rounded] = lengths.get(rounded, 0) + 1


def length_that_keeps(lengths: dict[int, int], share: float, seen: int) -> int:
    """Return the sequenceLength that this share of all `seen` examples would fit into."""
    left_out = sum(lengths.values())
    for length in sorted(lengths):
        left_out -= lengths[length]
        if left_out <= (1 - share) * seen:
            return length
    return max(lengths)


def length_remedy(length: int, longest: int, what: str) -> str:
    """Return the remedy for examples that are longer than a row; `longest` is what is allowed."""
    if length <= longest:
        return f"training.sequenceLength {length} keeps {what}"
    return (
        f"even training.sequenceLength {longest}, the largest for this model, does not keep "
        f"{what}: divide the examples, or set dataset.overlong to Truncate"
    )


@dataclass
class ExampleCounts:
    """What became of the examples of one block, source or split.

    `kept` examples are trained on or held out. `overlong` maps a length in tokens to the number of
    examples that were dropped for it. `special` examples contain special tokens of the tokenizer as
    plain characters; `reasoning_left_out` is that of documents. `ignored` are the keys of rows that
    have no effect.
    """

    kept: int = 0
    empty: int = 0
    untrained: int = 0
    invalid: int = 0
    truncated: int = 0
    split: int = 0
    special: int = 0
    reasoning_left_out: int = 0
    overlong: dict[int, int] = field(default_factory=dict)
    left_out: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    first_invalid: str = ""
    first_overlong: str = ""
    ignored: list[str] = field(default_factory=list)

    def leave_out(self, kind: str, where: str, why: str) -> None:
        """Note (file, row, why) of an example that is left out, for the first ones of each kind."""
        named = self.left_out.setdefault(kind, [])
        if len(named) < MAX_LEFT_OUT:
            file, *row = where.rsplit(" ", 2)
            named.append((file, " ".join(row), why))

    def named(self) -> Iterator[LeftOut]:
        """Yield the examples that `leave_out` noted."""
        for named in self.left_out.values():
            for file, row, why in named:
                yield LeftOut(file=file[-512:], row=row, why=why[:160])

    @property
    def seen(self) -> int:
        """Number of examples that were read."""
        return self.kept + self.empty + self.untrained + self.invalid + self.dropped_overlong

    @property
    def dropped_overlong(self) -> int:
        """Number of examples that were dropped because they are longer than a row."""
        return sum(self.overlong.values())

    def add(self, other: "ExampleCounts") -> None:
        """Add the counts of a later part of the input."""
        for name in (
            *("kept", "empty", "untrained", "invalid", "truncated", "split", "special"),
            "reasoning_left_out",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for length, number in other.overlong.items():
            self.overlong[length] = self.overlong.get(length, 0) + number
        for kind, named in other.left_out.items():
            own = self.left_out.setdefault(kind, [])
            own += named[: MAX_LEFT_OUT - len(own)]
        self.first_invalid = self.first_invalid or other.first_invalid
        self.first_overlong = self.first_overlong or other.first_overlong
        self.ignore(other.ignored)

    def ignore(self, keys: Iterable[str]) -> None:
        """Note keys that have no effect, each once; rows may have any number of different ones."""
        for key in keys:
            if key not in self.ignored and len(self.ignored) < _MAX_KEYS:
                self.ignored.append(key)

    def check(self, where: str, length: int, longest: int, overlong: str) -> None:
        """Raise TrainerError (65) if too many examples were dropped.

        `where` is the field of the sources, `length` training.sequenceLength, `longest` its largest
        value for this model, and `overlong` dataset.overlong.
        """
        self._check_overlong(where, length, longest, overlong)
        if self.invalid > MAX_DROPPED * self.seen or self.invalid == self.seen:
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {self.invalid} of {self.seen} examples cannot be rendered; at most 5 % "
                f"may be left out; the first: {self.first_invalid}",
            )
        useless = self.empty + self.untrained
        if useless > MAX_DROPPED * self.seen or not self.kept:
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {useless} of {self.seen} examples are empty ({self.empty}) or train no "
                f"token ({self.untrained}); at most 5 % may be dropped; clean the data, or check "
                "dataset.lossOn",
            )

    def _check_overlong(self, where: str, length: int, longest: int, overlong: str) -> None:
        found = self.dropped_overlong
        if overlong == "Fail" and found:
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {found} of {self.seen} examples are longer than sequenceLength {length} "
                f"(the first: {self.first_overlong}) and dataset.overlong is Fail; "
                f"{length_remedy(max(self.overlong), longest, 'all')}",
            )
        if found > MAX_DROPPED * self.seen or found == self.seen:
            keeping = length_that_keeps(self.overlong, 0.99, self.seen)
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {found} of {self.seen} examples are longer than sequenceLength {length} "
                f"(the first: {self.first_overlong}); at most 5 % may be dropped; "
                f"{length_remedy(keeping, longest, '99 %')}",
            )
