"""What is doubtful about data that can be trained on: it is a warning, and the job goes on."""

from finetune_trainer.data.build_parts import SourceParts
from finetune_trainer.data.source_file import SourceFiles

MAX_DOUBTFUL = 0.01
"""Share of the examples that may be doubtful without a warning."""


def without_rows(sources: SourceFiles, parts: list[SourceParts]) -> list[str]:
    """Warn of sources that have no row at all."""
    return [
        f"{source.source} has no row, so nothing is learned from it; add rows, or remove it"
        for (source, _), own in zip(sources, parts, strict=True)
        if not own.count().seen
    ]


def shared_examples(
    train: SourceFiles, validation: SourceFiles, shared: int, examples: int
) -> list[str]:
    """Warn of validation that measures what was trained on; `shared` of its examples are."""
    if shared <= MAX_DOUBTFUL * examples:
        return []
    trained = {file.path.resolve() for _, files in train for file in files}
    both = [f.name for _, files in validation for f in files if f.path.resolve() in trained]
    named = f" ({both[0]} is in both)" if both else ""
    return [
        f"{shared} of the {examples} examples of dataset.validation "
        f"({100 * shared / examples:.3g} %) are in dataset.train as well{named}, so the validation "
        "loss shows what was memorized; remove them from one of the two"
    ]


def special_tokens(special: int, examples: int) -> list[str]:
    """Warn of texts that were probably rendered with a chat template before."""
    if special <= MAX_DOUBTFUL * examples:
        return []
    return [
        f"{special} of the {examples} examples of dataset.train ({100 * special / examples:.3g} %) "
        "contain special tokens of the tokenizer, such as the marks of a chat template, and are "
        "trained on with them as plain characters; write conversations as messages"
    ]
