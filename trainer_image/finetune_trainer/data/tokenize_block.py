"""The expensive part of preparation: a block of rows becomes documents. Runs in any process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.exit_codes import ExitCode
from finetune_api.spec.data import SpecialTokensRule
from finetune_api.spec.training import MAX_LENGTH
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import read
from finetune_trainer.data.block import Block
from finetune_trainer.data.dropped_examples import (
    ExampleCounts,
    count_overlong,
    overlong_pieces,
    overlong_policy,
)
from finetune_trainer.data.example import Example, UnfitRowError, bad_data
from finetune_trainer.data.render import Document, Dropped, Rendered, Renderer
from finetune_trainer.data.shapes import Shape

_BATCH = 64  # examples that are tokenized together
# Tokenizing takes up to 190 bytes of memory per character.
_BATCH_CHARACTERS = 1 << 20
MAX_CHARACTERS = 4 << 20
"""Characters of an example: about 1 million tokens, the largest sequenceLength."""


@dataclass(frozen=True)
class Recipe:
    """Everything that documents depend on, besides the rows."""

    model: Path
    model_name: str  # the address of the model, for messages
    loss_on: str | None
    template: str | None
    overlong: str
    length: int
    special_tokens: SpecialTokensRule = "Plain"
    longest: int = MAX_LENGTH  # the largest sequenceLength that is allowed with this model

    def renderer(self) -> Renderer:
        """Load the tokenizer; TrainerError (64) if that is not possible."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model, local_files_only=True)
        except Exception as error:  # transformers and tokenizers can raise any error
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{self.model_name}: transformers cannot read this tokenizer "
                f"({str(error).splitlines()[0]}); copy it again",
            ) from error
        return Renderer(tokenizer, self.loss_on, self.template, self.special_tokens)


@dataclass(frozen=True)
class TokenizedBlock:
    """The documents of a block and the counts of its examples.

    tokens [all] uint32 and trained [all] uint8, one document after another; lengths [documents]
    uint32; examples [kept, 3] uint64: digest, line or row number, number of documents.
    """

    tokens: NDArray[np.uint32]
    trained: NDArray[np.uint8]
    lengths: NDArray[np.uint32]
    examples: NDArray[np.uint64]
    count: ExampleCounts


def tokenize(renderer: Renderer, recipe: Recipe, shape: Shape, block: Block) -> TokenizedBlock:
    """Return the documents of a block, in order; TrainerError names a row that cannot be read."""
    collected = _Collector()
    waiting: list[tuple[int, Example]] = []
    size = 0

    def flush() -> None:
        rendered = renderer.render([example for _, example in waiting])
        for (number, example), found in zip(waiting, rendered, strict=True):
            collected.add(example, number, found, recipe)
        waiting.clear()

    for row in read.rows(block):
        number = int(row[0].rsplit(" ", 1)[1])
        example = shape.example(row)
        characters = _characters(example)
        if len(waiting) == _BATCH or size + characters > _BATCH_CHARACTERS:
            flush()
            size = 0
        size += characters
        waiting.append((number, example))
    flush()
    return collected.block()


def _characters(example: Example) -> int:
    """Return the length of an example's texts; TrainerError (65) if it needs too much memory."""
    found = sum(map(len, example.texts()))
    if found > MAX_CHARACTERS:
        problem = f"{found} characters of text"
        remedy = f"at most {MAX_CHARACTERS} are allowed in a row: divide or remove it"
        raise bad_data(example.where, problem, remedy)
    return found


@dataclass
class _Collector:
    documents: list[Document] = field(default_factory=list)
    examples: list[tuple[int, int, int]] = field(default_factory=list)
    count: ExampleCounts = field(default_factory=ExampleCounts)

    def add(self, example: Example, number: int, found: Rendered, recipe: Recipe) -> None:
        count = self.count
        if example.unused:
            count.ignore(example.unused)
        if isinstance(found, UnfitRowError):
            count.invalid += 1
            count.first_invalid = count.first_invalid or found.message
            why = found.message.removeprefix(example.where).lstrip(":, ")
            count.leave_out("invalid", example.where, why)
        elif found is Dropped.EMPTY:
            count.empty += 1
            count.leave_out("empty", example.where, "nothing to learn in it")
        elif isinstance(found, Dropped):
            count.untrained += 1
            count.leave_out("untrained", example.where, "none of its tokens is trained on")
        elif kept := self._fitting(example, found, recipe):
            self.documents += kept
            self.examples.append((example.digest(), number, len(kept)))
            count.kept += 1
            count.special += found.special
            count.reasoning_left_out += found.reasoning_left_out

    def _fitting(self, example: Example, document: Document, recipe: Recipe) -> list[Document]:
        """Return the parts of a document that fit into a row, and count what was done to it."""
        count = self.count
        if len(document.tokens) <= recipe.length:
            return [document]
        how = overlong_policy(recipe.overlong, example.text is not None, example.where)
        kept = overlong_pieces(document, recipe.length, how)
        if how in ("Drop", "Fail"):
            count_overlong(count.overlong, len(document.tokens))
            what = f"{example.where}, {len(document.tokens)} tokens"
            count.first_overlong = count.first_overlong or what
            why = f"{len(document.tokens)} tokens, sequenceLength is {recipe.length}"
            count.leave_out("overlong", example.where, why)
        elif not kept:
            count.untrained += 1
            why = "all of its trained tokens were cut off"
            count.leave_out("untrained", example.where, why)
        elif how == "Truncate":
            count.truncated += 1
        else:
            count.split += 1
        return kept

    def block(self) -> TokenizedBlock:
        def joined(arrays: list[Any], dtype: Any) -> Any:
            return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)

        return TokenizedBlock(
            tokens=joined([document.tokens for document in self.documents], np.uint32),
            trained=joined([document.trained for document in self.documents], np.uint8),
            lengths=np.asarray([len(d.tokens) for d in self.documents], dtype=np.uint32),
            examples=np.asarray(self.examples, dtype=np.uint64).reshape(-1, 3),
            count=self.count,
        )
