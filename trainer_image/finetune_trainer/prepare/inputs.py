"""Finds the inputs of a job, and computes the digests that identify them.

The inputs are the model, the files of data and the chat template. Equal digests mean equal rows and
equal runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import DataSummary
from finetune_api.spec import ChatTemplate, Dataset, DataSource, Model, Training, TrainSource
from finetune_api.spec.data import SpecialTokensRule
from finetune_api.spec.use import row_values
from finetune_api.uri import is_claim
from finetune_trainer.common.errors import TrainerError, reading
from finetune_trainer.data.source_file import SourceFiles, kind_of
from finetune_trainer.model import folder
from finetune_trainer.run_dir.files import file_digest, value_digest
from finetune_trainer.run_dir.paths import claim_file, claim_path
from finetune_trainer.sources.download import Downloads
from finetune_trainer.sources.listing import RemoteFile, model_text_files, safetensors_files
from finetune_trainer.sources.local_files import source_files

PREPARATION_VERSION = 6
"""Increased by every change that makes other rows from the same input."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
_EARLIER_TOKENIZER_FILES = _TOKENIZER_FILES[:3]
_MORE_TEMPLATES = "additional_chat_templates/*.jinja"


def inspect_model(
    path: Path,
    model: Model,
    mounts: dict[str, str],
    check: Callable[[Path], None],
    advance: Callable[[], None],
) -> folder.ModelFolder:
    """Return what is known of the model in a folder; TrainerError if it cannot be used.

    `check` is called before the weights are read.
    """
    with reading(model.source):
        if is_claim(model.source) and path.is_dir():
            _check_files(path, model.source.rstrip("/"), mounts)
        check(path)
        return folder.inspect(path, model.source, advance)


def _check_files(path: Path, uri: str, mounts: dict[str, str]) -> None:
    """Check that no file leads out of the claim, and that the files of a model can be read."""
    every = [RemoteFile(file.name, size=0, tag="") for file in path.iterdir()]
    read = {file.name for file in [*model_text_files(every), *safetensors_files(every)]}
    for file in every:
        check = claim_file if file.name in read else claim_path
        check(f"{uri}/{file.name}", mounts)


def check_sequence_length(wanted: int, model: folder.ModelFolder) -> None:
    """Raise TrainerError (64) if rows have more tokens than the model has positions."""
    if model.max_length is not None and wanted > model.max_length:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"training.sequenceLength {wanted}: the model has {model.max_length} positions; "
            "that is the largest value allowed",
        )


@dataclass(frozen=True)
class DataInputs:
    """The data as local files, and the chat template if the job has one of its own."""

    train: SourceFiles
    validation: SourceFiles
    template: str | None


def find_data(dataset: Dataset, mounts: dict[str, str], downloads: Downloads) -> DataInputs:
    """Return all files that a dataset names; TrainerError names what does not exist."""

    def found(sources: Sequence[DataSource]) -> SourceFiles:
        every = []
        for source in sources:
            with reading(source.source):
                every.append((source, source_files(source, mounts, downloads)))
        return every

    return DataInputs(
        train=found(dataset.train),
        validation=found(dataset.validation or []),
        template=_template(dataset.chat_template, mounts),
    )


def _template(template: ChatTemplate | None, mounts: dict[str, str]) -> str | None:
    if template is None:
        return None
    if template.path is None:
        return template.inline
    with reading(template.path):
        try:
            return claim_file(template.path, mounts).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            text = f"dataset.chatTemplate: {template.path} is not UTF-8 text ({error.reason})"
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION, f"{text}; name a Jinja template"
            ) from error


def check_weights(train: Sequence[TrainSource], data: DataSummary) -> None:
    """Raise TrainerError (65) if a source with a weight has no row to give it a share of."""
    for source, found in zip(train, data.sources, strict=True):
        if source.weight is not None and not found.rows:
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{source.source}: no example that can be trained on, but its weight is "
                f"{source.weight:g}; remove the source, or add data",
            )


@dataclass(frozen=True)
class PreparedDigests:
    """The digest of everything that the packed rows depend on, and that of earlier versions."""

    current: str
    earlier: str  # of PREPARATION_VERSION 3, with which runs were identified


def digest_of_prepared_data(
    inputs: DataInputs,
    tokenizer: dict[str, str],
    dataset: Dataset,
    training: Training,
    advance: Callable[[], None],
) -> PreparedDigests:
    """Return the digests of everything that the packed rows depend on.

    They cover contents, not times or places: the same input gives the same digest on any volume.
    Weights, epochs and the seed are not part of it, because they change the order of rows only.
    `tokenizer` is the result of `digest_of_tokenizer`; `advance` is called while files are read.
    """
    contents = []
    for source, files in [*inputs.train, *inputs.validation]:
        with reading(source.source):
            data = [[file_digest(f.path, advance), kind_of(f.path)] for f in files]
        columns = source.columns.to_dict() if source.columns else {}
        contents.append([data, source.format, columns])
    import tokenizers
    import transformers

    earlier = {
        "version": 3,
        "libraries": [tokenizers.__version__, transformers.__version__.rsplit(".", 1)[0]],
        "tokenizer": {n: d for n, d in tokenizer.items() if n in _EARLIER_TOKENIZER_FILES},
        "sources": contents,
        "train": len(dataset.train),
        "lossOn": loss_on(dataset, training),
        "chatTemplate": inputs.template,
        **row_values(dataset),
        **row_values(training),
    }
    current = {
        "version": PREPARATION_VERSION,
        "tokenizer": tokenizer,
        "specialTokens": special_tokens(dataset),
    }
    return PreparedDigests(value_digest(earlier | current), value_digest(earlier))


def digest_of_tokenizer(model: Path, address: str) -> dict[str, str]:
    """Return the digest of each file of a model's tokenizer; `address` is for messages."""
    with reading(address):
        present = [model / name for name in _TOKENIZER_FILES if (model / name).is_file()]
        files = present + sorted(model.glob(_MORE_TEMPLATES))
        return {str(file.relative_to(model)): file_digest(file) for file in files}


def digest_of_run(model: str, rows: str, dataset: Dataset, training: Training) -> str:
    """Return the digest of a run: `model` and `rows` are the digests of what is trained.

    It covers contents, not addresses: a model that was copied to a claim is the same model. It does
    not cover files that training does not depend on, so that they can be corrected after training.
    """
    return value_digest(
        {
            "version": 2,
            "model": model,
            "rows": rows,
            "weights": [source.weight for source in dataset.train],
            "training": training.to_dict(),
        }
    )


def earlier_digest_of_run(
    revision: str, prepared: str, dataset: Dataset, training: Training
) -> str:
    """Return the digest that earlier versions gave a run. It covers all files of the model."""
    return value_digest(
        {
            "model": revision,
            "data": prepared,
            "weights": [source.weight for source in dataset.train],
            "training": training.to_dict(),
        }
    )


def loss_on(dataset: Dataset, training: Training) -> str | None:
    """Return the tokens that carry loss; None means that the format of each example decides."""
    everything = training.objective == "ContinuedPretraining"
    return dataset.loss_on or ("All" if everything else None)


def special_tokens(dataset: Dataset) -> SpecialTokensRule:
    """Return what is done with special tokens in the text of an example."""
    return dataset.special_tokens or "Plain"
