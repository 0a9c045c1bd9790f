"""What became of the examples, and when it is too bad to go on."""

from dataclasses import dataclass, field

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import overlong as too_long

MAX_DROPPED = 0.05


@dataclass
class Count:
    """Of one block, source or split.

    `kept` are trained on or held out; `overlong` says how often each length came, in tokens.
    """

    kept: int = 0
    empty: int = 0
    untrained: int = 0
    invalid: int = 0
    truncated: int = 0
    split: int = 0
    overlong: dict[int, int] = field(default_factory=dict)
    first_invalid: str = ""
    first_overlong: str = ""

    @property
    def seen(self) -> int:
        """Examples read."""
        return self.kept + self.empty + self.untrained + self.invalid + self.dropped_overlong

    @property
    def dropped_overlong(self) -> int:
        """Examples left out, longer than a row."""
        return sum(self.overlong.values())

    def add(self, other: "Count") -> None:
        """What another one counted, later in the input."""
        for name in ("kept", "empty", "untrained", "invalid", "truncated", "split"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for length, number in other.overlong.items():
            self.overlong[length] = self.overlong.get(length, 0) + number
        self.first_invalid = self.first_invalid or other.first_invalid
        self.first_overlong = self.first_overlong or other.first_overlong

    def judge(self, where: str, length: int, overlong: str) -> None:
        """TrainerError (65) when the data is not what anybody wants to train on."""
        if not self.seen:
            raise TrainerError(ExitCode.BAD_DATA, f"{where}: no example in any source; add some")
        self._judge_overlong(where, length, overlong)
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
                f"token ({self.untrained}); at most 5 % may be dropped; clean the data, or look at "
                "dataset.lossOn",
            )

    def _judge_overlong(self, where: str, length: int, overlong: str) -> None:
        found = self.dropped_overlong
        if overlong == "Fail" and found:
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {found} of {self.seen} examples are longer than sequenceLength {length} "
                f"(the first: {self.first_overlong}) and dataset.overlong is Fail; "
                f"training.sequenceLength {max(self.overlong)} keeps all",
            )
        if found > MAX_DROPPED * self.seen or found == self.seen:
            keeping = too_long.keeping(self.overlong, 0.99, self.seen)
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{where}: {found} of {self.seen} examples are longer than sequenceLength {length} "
                f"(the first: {self.first_overlong}); at most 5 % may be dropped; "
                f"training.sequenceLength {keeping} keeps 99 %",
            )
