"""The digests that identify prepared data and runs. Equal digests mean equal rows, equal runs."""

from collections.abc import Callable
from pathlib import Path

from finetune_api.spec import Dataset, Training
from finetune_api.spec.use import row_values
from finetune_trainer.common.errors import reading
from finetune_trainer.data.source_file import kind_of
from finetune_trainer.prepare.inputs import DataInputs
from finetune_trainer.run_dir import digest

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def of_prepared_data(
    inputs: DataInputs,
    tokenizer: dict[str, str],
    dataset: Dataset,
    training: Training,
    advance: Callable[[], None],
) -> str:
    """Return the digest of everything that the packed rows depend on.

    It covers contents, not times or places: the same input gives the same digest on any volume.
    Weights, epochs and the seed are not part of it, because they change the order of rows only.
    `tokenizer` is the result of `of_tokenizer`; `advance` is called while files are read.
    """
    contents = []
    for source, files in [*inputs.train, *inputs.validation]:
        with reading(source.source):
            data = [[digest.of_file(f.path, advance), kind_of(f.path)] for f in files]
        columns = source.columns.to_dict() if source.columns else {}
        contents.append([data, source.format, columns])
    import tokenizers
    import transformers

    return digest.of_value(
        {
            "version": digest.PREPARATION_VERSION,
            "libraries": [tokenizers.__version__, transformers.__version__.rsplit(".", 1)[0]],
            "tokenizer": tokenizer,
            "sources": contents,
            "train": len(dataset.train),
            "lossOn": loss_on(dataset, training),
            "chatTemplate": inputs.template,
            **row_values(dataset),
            **row_values(training),
        }
    )


def of_tokenizer(model: Path, address: str) -> dict[str, str]:
    """Return the digest of each file of a model's tokenizer; `address` is for messages."""
    with reading(address):
        present = [name for name in _TOKENIZER_FILES if (model / name).is_file()]
        return {name: digest.of_file(model / name) for name in present}


def of_run(model: str, prepared: str, dataset: Dataset, training: Training) -> str:
    """Return the digest of a run: `model` and `prepared` are the digests of its inputs.

    It covers the contents of the model, not its address: a model that was copied to a claim is the
    same model.
    """
    return digest.of_value(
        {
            "model": model,
            "data": prepared,
            "weights": [source.weight for source in dataset.train],
            "training": training.to_dict(),
        }
    )


def loss_on(dataset: Dataset, training: Training) -> str | None:
    """Return the tokens that carry loss; None means that the format of each example decides."""
    everything = training.objective == "ContinuedPretraining"
    return dataset.loss_on or ("All" if everything else None)
