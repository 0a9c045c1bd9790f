"""What is doubtful about data that can be trained on: it is a warning, and the job goes on."""

from finetune_trainer.data.build_parts import SourceParts
from finetune_trainer.data.source_file import SourceFiles

MAX_SHARED = 0.01
"""Share of the validation examples that may be training examples, too, without a warning."""


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
    if shared <= MAX_SHARED * examples:
        return []
    trained = {file.path.resolve() for _, files in train for file in files}
    both = [f.name for _, files in validation for f in files if f.path.resolve() in trained]
    named = f" ({both[0]} is in both)" if both else ""
    return [
        f"{shared} of the {examples} examples of dataset.validation "
        f"({100 * shared / examples:.3g} %) are in dataset.train as well{named}, so the validation "
        "loss shows what was memorized; remove them from one of the two"
    ]
