"""Examples longer than a row: dropped, cut or split, and what to do when they are too many."""

from typing import Literal

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.render import Document

Policy = Literal["Drop", "Truncate", "Split", "Fail"]
_ROUND = 16  # tokens; bounds what is remembered of lengths


def policy(wanted: str, is_text: bool, where: str) -> Policy:
    """What dataset.overlong means for an example of this kind; TrainerError (64) where it cannot.

    A chat that is cut in two makes no sense, a document does.
    """
    if wanted == "Split" and not is_text:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"dataset.overlong Split fits documents (Text) only, and {where} is none; allowed are "
            "Auto, Drop, Truncate, Fail",
        )
    if wanted == "Auto":
        return "Split" if is_text else "Drop"
    policies: dict[str, Policy] = {
        "Drop": "Drop",
        "Truncate": "Truncate",
        "Split": "Split",
        "Fail": "Fail",
    }
    return policies[wanted]


def pieces(document: Document, length: int, how: Policy) -> list[Document]:
    """What is left of a document that is too long: parts of at most `length` tokens.

    The first token of a later part has no loss: what predicts it stands in the part before.
    """
    if how in ("Drop", "Fail"):
        return []
    size = len(document.tokens)
    starts = range(0, size, length) if how == "Split" else [0]
    cut = []
    for begin in starts:
        trained = document.trained[begin : begin + length].copy()
        trained[0] = 0
        if trained.any():
            cut.append(Document(document.tokens[begin : begin + length], trained))
    return cut


def note(lengths: dict[int, int], length: int) -> None:
    """One more example that was too long: how often each length came, rounded up."""
    rounded = -(-length // _ROUND) * _ROUND
    lengths[rounded] = lengths.get(rounded, 0) + 1


def keeping(lengths: dict[int, int], share: float, seen: int) -> int:
    """The sequenceLength with which this share of all examples would fit."""
    left_out = sum(lengths.values())
    for length in sorted(lengths):
        left_out -= lengths[length]
        if left_out <= (1 - share) * seen:
            return length
    return max(lengths)
