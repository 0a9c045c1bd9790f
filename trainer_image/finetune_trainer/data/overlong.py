"""Examples that are longer than a packed row: whether they are dropped, truncated or split."""

from typing import Literal

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.render import Document

Policy = Literal["Drop", "Truncate", "Split", "Fail"]
_ROUND = 16  # tokens; bounds the number of different lengths that are counted


def policy(wanted: str, is_text: bool, where: str) -> Policy:
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
    policies: dict[str, Policy] = {
        "Drop": "Drop",
        "Truncate": "Truncate",
        "Split": "Split",
        "Fail": "Fail",
    }
    return policies[wanted]


def pieces(document: Document, length: int, how: Policy) -> list[Document]:
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


def count_length(lengths: dict[int, int], length: int) -> None:
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
