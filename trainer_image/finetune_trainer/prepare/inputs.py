"""Finds the inputs of a job: its model, the files of its data and its chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import DataSummary
from finetune_api.spec import ChatTemplate, Dataset, DataSource, Model, TrainSource
from finetune_api.uri import is_claim
from finetune_trainer.common.errors import TrainerError, reading
from finetune_trainer.data.build import SourceFiles
from finetune_trainer.model import folder
from finetune_trainer.run_dir.paths import claim_path
from finetune_trainer.sources.downloads import Downloads
from finetune_trainer.sources.source_files import source_files


def inspect_model(
    path: Path, model: Model, mounts: dict[str, str], downloads: Downloads
) -> folder.ModelFolder:
    """Return what is known of the model in a folder; TrainerError if it cannot be used."""
    with reading(model.source):
        if is_claim(model.source) and path.is_dir():
            for file in path.iterdir():  # no file may be a link that leads out of the claim
                claim_path(f"{model.source.rstrip('/')}/{file.name}", mounts)
        return folder.inspect(path, model.source, downloads.report.advance)


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
            return claim_path(template.path, mounts).read_text(encoding="utf-8")
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
