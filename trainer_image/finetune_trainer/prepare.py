"""The prepare pod: everything that can go wrong before a device is held.

Checks storage and model, tokenises, masks and packs the data into the cache, claims the storage for
this job. Writes only `cache/` (a temporary folder, then a rename) and `run.json` (created
exclusively): it holds no fence.
"""

import errno
import logging
import os
import shutil
import time
from pathlib import Path
from uuid import uuid4

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import DataSummary
from finetune_api.run import PrepareResult, RunConfig
from finetune_api.spec import DataSource
from finetune_api.storage import RunFile
from finetune_api.uri import is_claim
from finetune_trainer import finished, model, remote
from finetune_trainer.data import digest, formats
from finetune_trainer.errors import TrainerError
from finetune_trainer.files import write_new
from finetune_trainer.inputs import reading
from finetune_trainer.paths import RunPaths, cache_folder, cache_name, resolve
from finetune_trainer.reporter import Reporter

_log = logging.getLogger(__name__)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_ABANDONED = 24 * 3600.0  # s; a builder that has not moved for a day is dead


def run(config: RunConfig, report: Reporter) -> PrepareResult:
    """Prepare everything; TrainerError says what is wrong and what to do."""
    report.stage("PreparingData")
    check_writable(resolve(config, config.checkpoints.storage), config.checkpoints.storage)
    check_writable(cache_folder(config), cache_name(config))
    config = _with_model(config, report)
    paths = RunPaths.of(config)
    with reading(config.model.source):
        _check_links(config, paths.model)
        found = model.inspect(paths.model, config.model.source, report.advance)
    _check_length(config, found)
    prepared = _digest(config, paths, report)
    data = _prepared(config, paths, prepared, report)
    # The contents, not where they came from: a model that was copied to a claim is the same one.
    run_digest = digest.of_value(
        {"model": found.revision, "data": prepared, "training": config.training.to_dict()}
    )
    revision = config.model_revision or found.revision
    _claim(config, paths, revision, run_digest)
    return PrepareResult(
        prepared_digest=prepared,
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


def _files(config: RunConfig, source: DataSource, report: Reporter) -> list[tuple[Path, str]]:
    """The files of a source, here in the pod, and what people call them."""
    if is_claim(source.source):
        return [(resolve(config, source.source), source.source)]
    return remote.files(config, source, report)


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


def _check_length(config: RunConfig, found: model.ModelFolder) -> None:
    wanted = config.training.sequence_length
    if found.max_length is not None and wanted > found.max_length:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"training.sequenceLength {wanted}: the model has {found.max_length} positions; "
            "that is the largest value allowed",
        )


def _digest(config: RunConfig, paths: RunPaths, report: Reporter) -> str:
    """Contents, never times: the same input gives the same digest on any volume."""
    dataset, training = config.dataset, config.training
    contents = []
    for source in [*dataset.train, *(dataset.validation or [])]:
        for path, name in _files(config, source, report):
            with reading(name):
                formats.check_file(path, name)
                kind = formats.kind_of(path)
                contents.append([digest.of_file(path, report.advance), source.format, kind])
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
            "lossOn": dataset.loss_on,
            "sequenceLength": training.sequence_length,
            "packing": training.packing,
        }
    )


def _tokenizer_digest(folder: Path) -> dict[str, str]:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    return {name: digest.of_file(folder / name) for name in names if (folder / name).is_file()}


def _prepared(config: RunConfig, paths: RunPaths, key: str, report: Reporter) -> DataSummary:
    """The summary of the prepared folder, which exists afterwards."""
    target = paths.prepared(key)
    card = target / "card.json"
    if card.is_file():
        _log.info("data was prepared before: %s", target)
        return _as_ours(config, DataSummary.model_validate_json(card.read_text()))
    mine = f".building-{config.job_uid}-"
    partial = target.parent / f"{mine}{uuid4().hex}"
    try:
        _remove_abandoned(target.parent, mine)
        partial.mkdir(parents=True)
        summary = _build(config, paths, partial, report)
        (partial / "card.json").write_text(summary.to_json())
        _sync_folder(partial)
        try:
            partial.rename(target)
        except OSError as error:
            # Another job built the same data meanwhile: the same digest, so the same rows.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    except OSError as error:
        text = f"{cache_name(config)}: {_why(error)}"
        raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _as_ours(config: RunConfig, data: DataSummary) -> DataSummary:
    """The job that built the data may have the same files at other places."""
    names = [source.source for source in config.dataset.train]
    sources = zip(names, data.sources, strict=True)
    return data.replace(sources=[found.replace(source=name) for name, found in sources])


def _build(config: RunConfig, paths: RunPaths, folder: Path, report: Reporter) -> DataSummary:
    from transformers import AutoTokenizer

    from finetune_trainer.data.build import Builder
    from finetune_trainer.data.render import Renderer

    try:
        tokenizer = AutoTokenizer.from_pretrained(paths.model, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise whatever they like
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{config.model.source}: transformers cannot read this tokenizer "
            f"({str(error).splitlines()[0]}); copy it again",
        ) from error
    renderer = Renderer(tokenizer, config.dataset.loss_on)
    return Builder(config, renderer, folder, report, _files).build()


def _remove_abandoned(folder: Path, mine: str) -> None:
    """What builders left that were killed: this job's own at once, others' after a day."""
    for partial in folder.glob(".building-*"):
        try:
            newest = max(path.stat().st_mtime for path in [partial, *partial.iterdir()])
        except OSError:
            continue  # its builder is just finishing
        if partial.name.startswith(mine) or time.time() - newest > _ABANDONED:
            shutil.rmtree(partial, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _claim(config: RunConfig, paths: RunPaths, revision: str, run_digest: str) -> None:
    """Create run.json, or make sure that it is ours."""
    mine = RunFile(
        job_uid=config.job_uid,
        job_name=config.job_name,
        job_namespace=config.job_namespace,
        model_revision=revision,
        run_digest=run_digest,
    )
    if write_new(paths.run_file, mine.to_json()):
        return
    where = config.checkpoints.storage
    try:
        found = RunFile.model_validate_json(paths.run_file.read_text())
    except ValueError as error:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE,
            f"{where}: run.json cannot be read; remove it if no run is using this folder",
        ) from error
    if found.job_uid != config.job_uid:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE,
            f"{where} belongs to another run (job {found.job_namespace}/{found.job_name}, uid "
            f"{found.job_uid}); choose another folder for checkpoints.storage, or remove this one",
            reason="StorageInUse",
        )
    if found.run_digest != run_digest:
        if any(paths.storage.glob("fence.*")):
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{where}: model, data or training changed since this run began; make a new job "
                "with another checkpoints.storage",
            )
        # Nothing was trained yet: the spec was mended before the first attempt.
        paths.run_file.unlink(missing_ok=True)
        _claim(config, paths, revision, run_digest)  # somebody else may be faster: look again
