"""The prepare pod: everything that can go wrong before a device is held.

Checks storage and model, tokenises, masks and packs the data into the cache, claims the storage for
this job. Writes only `cache/` (a folder of its own, then a rename) and `run.json`: it holds no
fence.
"""

import errno
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from finetune_api.exit_codes import ExitCode, is_permanent
from finetune_api.progress import DataSummary
from finetune_api.run import PrepareResult, RunConfig
from finetune_api.spec import DataSource
from finetune_api.uri import is_claim
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.input_errors import reading
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import prepared
from finetune_trainer.data.source_file import SourceFile, kind_of
from finetune_trainer.model import folder
from finetune_trainer.prepare import disk_space
from finetune_trainer.run_dir import digest, finished, ownership
from finetune_trainer.run_dir.files import sync_tree, take_place, unfinished, write_new
from finetune_trainer.run_dir.paths import RunPaths, cache_folder, cache_name, resolve
from finetune_trainer.sources import remote
from finetune_trainer.sources.local_files import files

_log = logging.getLogger(__name__)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
Files = list[tuple[DataSource, list[SourceFile]]]


def run(config: RunConfig, report: Reporter) -> PrepareResult:
    """Prepare everything; TrainerError says what is wrong and what to do."""
    report.stage("PreparingData")
    check_writable(resolve(config, config.checkpoints.storage), config.checkpoints.storage)
    check_writable(cache_folder(config), cache_name(config))
    config = _with_model(config, report)
    paths = RunPaths.of(config)
    with reading(config.model.source):
        _check_links(config, paths.model)
        found = folder.inspect(paths.model, config.model.source, report.advance)
    _check_length(config, found)
    disk_space.check(config, paths, found.parameter_count)
    inputs = _inputs(config, report)
    prepared_digest = _digest(config, paths, inputs, report)
    data = _prepared(config, paths, prepared_digest, inputs, report)
    _check_weights(config, data)
    # The contents, not where they came from: a model that was copied to a claim is the same one.
    run_digest = digest.of_value(
        {
            "model": found.revision,
            "data": prepared_digest,
            "weights": [source.weight for source in config.dataset.train],
            "training": config.training.to_dict(),
        }
    )
    revision = config.model_revision or found.revision
    ownership.claim(config, paths, revision, run_digest)
    return PrepareResult(
        prepared_digest=prepared_digest,
        run_digest=run_digest,
        model_revision=revision,
        parameter_count=found.parameter_count,
        data=data,
        finished=finished.read(paths, config.job_uid, run_digest),
    )


def _with_model(config: RunConfig, report: Reporter) -> RunConfig:
    """The configuration with a model that is at hand: downloaded when it lies on no claim."""
    if is_claim(config.model.source):
        return config
    _, revision = remote.model_folder(config, report)
    _log.info("%s is %s", config.model.source, revision)
    return config.replace(model_revision=revision)


def check_writable(folder: Path, name: str) -> None:
    """TrainerError (73) when files cannot be made in the folder.

    Tried the way the fence is written, with its sync and its hard link: a full disk and a file
    system without links are found now, not by the first attempt.
    """
    probe = folder / f".write-test-{uuid4().hex}"
    try:
        write_new(probe, "x")
        probe.unlink()
    except OSError as error:
        raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, f"{name}: {_why(error)}") from error


def _why(error: OSError) -> str:
    if error.filename2 and error.errno in _NO_LINKS:
        return "the file system has no hard links, which the fence needs; use another volume"
    if error.errno == errno.EROFS:
        return "the volume is mounted read-only; use a claim with access mode ReadWriteMany"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "no permission to write; let the pod's group own the volume "
            "(template.spec.securityContext.fsGroup) or choose another folder"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"a file is in the way ({error.filename}); remove it or choose another folder"
    if error.errno == errno.ENOSPC:
        return "no space is left on the volume; make room"
    return f"cannot be written ({error.strerror or error})"


def _check_links(config: RunConfig, folder: Path) -> None:
    """The files of the model, too, must lie on the claim."""
    if is_claim(config.model.source) and folder.is_dir():
        for file in folder.iterdir():
            resolve(config, f"{config.model.source.rstrip('/')}/{file.name}")


def _check_length(config: RunConfig, found: folder.ModelFolder) -> None:
    wanted = config.training.sequence_length
    if found.max_length is not None and wanted > found.max_length:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"training.sequenceLength {wanted}: the model has {found.max_length} positions; "
            "that is the largest value allowed",
        )


@dataclass(frozen=True)
class _Inputs:
    """The data as files, and the chat template where the job brings one."""

    train: Files
    validation: Files
    template: str | None


def _inputs(config: RunConfig, report: Reporter) -> _Inputs:
    """Everything named is there; TrainerError says what is not."""

    def found(sources: Sequence[DataSource]) -> Files:
        every = []
        for source in sources:
            with reading(source.source):
                every.append((source, list(files(config, source, report))))
        return every

    return _Inputs(
        train=found(config.dataset.train),
        validation=found(config.dataset.validation or []),
        template=_template(config),
    )


def _template(config: RunConfig) -> str | None:
    wanted = config.dataset.chat_template
    if wanted is None:
        return None
    if wanted.path is None:
        return wanted.inline
    with reading(wanted.path):
        try:
            return resolve(config, wanted.path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            text = f"dataset.chatTemplate: {wanted.path} is not UTF-8 text ({error.reason})"
            raise TrainerError(ExitCode.BAD_CONFIGURATION, f"{text}; name the template") from error


def _check_weights(config: RunConfig, data: DataSummary) -> None:
    """A source without a row cannot have a share of the rows."""
    for source, found in zip(config.dataset.train, data.sources, strict=True):
        if source.weight is not None and not found.rows:
            raise TrainerError(
                ExitCode.BAD_DATA,
                f"{source.source}: no example that can be trained on, but its weight is "
                f"{source.weight:g}; remove the source, or add data",
            )


def _digest(config: RunConfig, paths: RunPaths, inputs: _Inputs, report: Reporter) -> str:
    """Contents, never times: the same input gives the same digest on any volume.

    Without weights, epochs and the seed: they decide about the order, not about the rows.
    """
    dataset, training = config.dataset, config.training
    contents = []
    for source, found in [*inputs.train, *inputs.validation]:
        with reading(source.source):
            data = [[digest.of_file(f.path, report.advance), kind_of(f.path)] for f in found]
        columns = source.columns.to_dict() if source.columns else {}
        contents.append([data, source.format, columns])
    with reading(config.model.source):
        tokenizer = _tokenizer_digest(paths.model)
    import tokenizers
    import transformers

    return digest.of_value(
        {
            "version": digest.PREPARATION_VERSION,
            "libraries": [tokenizers.__version__, transformers.__version__.rsplit(".", 1)[0]],
            "tokenizer": tokenizer,
            "sources": contents,
            "train": len(dataset.train),
            "validationFraction": dataset.validation_fraction,
            "lossOn": _loss_on(config),
            "chatTemplate": inputs.template,
            "overlong": dataset.overlong,
            "sequenceLength": training.sequence_length,
            "packing": training.packing,
        }
    )


def _loss_on(config: RunConfig) -> str | None:
    """None: as the format of each example says."""
    everything = config.training.objective == "ContinuedPretraining"
    return config.dataset.loss_on or ("All" if everything else None)


def _tokenizer_digest(folder: Path) -> dict[str, str]:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return {name: digest.of_file(folder / name) for name in names if (folder / name).is_file()}


def _prepared(
    config: RunConfig, paths: RunPaths, key: str, inputs: _Inputs, report: Reporter
) -> DataSummary:
    """The summary of the prepared folder, which exists afterwards."""
    target = paths.prepared(key)
    if (target / prepared.CARD).is_file():
        _log.info("data was prepared before: %s", target)
        return prepared.summary(target, config)
    # Named after job and digest: the next builder goes on where one that was killed stopped.
    building = target.parent / f".building-{config.job_uid}-{key[:16]}"
    rows = building / f"rows-{uuid4().hex}"
    try:
        _remove_abandoned(target.parent, f".building-{config.job_uid}-", building.name)
        rows.mkdir(parents=True)
        summary = _build(config, paths, rows, inputs, report)
        (rows / prepared.CARD).write_text(summary.to_json())
        sync_tree(rows)
        # Or another job built the same data meanwhile: the same digest, so the same rows.
        take_place(rows, target)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        text = f"{cache_name(config)}: {_why(error)}"
        raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text) from error
    except TrainerError as error:
        if is_permanent(error.code, prepare=True):
            shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(rows, ignore_errors=True)
    shutil.rmtree(building, ignore_errors=True)
    return prepared.summary(target, config)


def _build(
    config: RunConfig, paths: RunPaths, folder: Path, inputs: _Inputs, report: Reporter
) -> DataSummary:
    from finetune_trainer.data.build import Builder
    from finetune_trainer.data.work import Recipe

    recipe = Recipe(
        model=paths.model,
        name=config.model.source,
        loss_on=_loss_on(config),
        template=inputs.template,
        overlong=config.dataset.overlong,
        length=config.training.sequence_length,
    )
    builder = Builder(config, recipe, folder, folder.parent / "parts", report)
    return builder.build(inputs.train, inputs.validation)


def _remove_abandoned(folder: Path, mine: str, current: str) -> None:
    """What builders left that were killed: this job's, of other data, at once; others' later."""
    for partial, abandoned in unfinished(folder, ".building-*"):
        if partial.name != current and (partial.name.startswith(mine) or abandoned):
            shutil.rmtree(partial, ignore_errors=True)
