"""The work of the prepare pod: finds everything that can go wrong before a device is held.

Writes only below `cache/` (a new folder, then a rename) and `run.json`, so it needs no fence.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from finetune_api.exit_codes import is_permanent
from finetune_api.run import PreparedData, PrepareResult, RunConfig
from finetune_api.spec import Dataset, Training
from finetune_api.spec.training import MAX_LENGTH
from finetune_api.storage import RunFile
from finetune_api.uri import is_claim
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import prepared
from finetune_trainer.data.build import Builder
from finetune_trainer.data.tokenize_block import Recipe
from finetune_trainer.model import memory_facts
from finetune_trainer.prepare import inputs, rehearsal, separation, side_files, storage_checks
from finetune_trainer.prepare.exactness_check import ExactnessCheck
from finetune_trainer.prepare.inputs import (
    PreparedDigests,
    digest_of_prepared_data,
    digest_of_run,
    digest_of_tokenizer,
    earlier_digest_of_run,
)
from finetune_trainer.prepare.storage_checks import not_writable
from finetune_trainer.run_dir import ownership
from finetune_trainer.run_dir.files import sync_tree, take_place, unfinished, write_atomic
from finetune_trainer.run_dir.paths import Cache, RunPaths, claim_path
from finetune_trainer.run_dir.records import read_export
from finetune_trainer.sources.download import Downloads
from finetune_trainer.sources.local_files import download_model

_log = logging.getLogger(__name__)
Build = Callable[[Path, Path], PreparedData]
"""Writes rows into the first folder, and keeps finished parts of the work in the second."""


def run(config: RunConfig, report: Reporter) -> PrepareResult:
    """Check all inputs and build the prepared data; TrainerError gives the problem and a remedy.

    1. Check that storage and cache are apart from the inputs and can be written.
    2. Download the model, unless it is on a claim, and check it. A model that the trainer would not
       compute exactly is refused before its weights are downloaded.
    3. Check that storage has room for checkpoints and the final model.
    4. Find the files of the data, downloading those that are not on a claim.
    5. Rehearse the export.
    6. Build the packed rows, unless the cache has rows with the same digest.
    7. Claim the storage for this job.
    """
    report.stage("PreparingData")
    model, dataset, training = config.model, config.dataset, config.training
    separation.check(config)
    storage, cache = config.checkpoints.storage, Cache.of(config)
    storage_checks.check_writable(claim_path(storage, config.mounts), storage)
    storage_checks.check_writable(cache.folder, cache.uri)

    downloads = Downloads(cache, config.job_uid, report)
    check = ExactnessCheck(
        model.source, training.sequence_length, report.advance, training.router_aux_loss
    )
    if not is_claim(model.source):
        _, revision = download_model(model, downloads, check)
        _log.info("%s is %s", model.source, revision)
        config = config.replace(model_revision=revision)
    paths = RunPaths.of(config)
    found = inputs.inspect_model(paths.model, model, config.mounts, check, report.advance)
    inputs.check_sequence_length(training.sequence_length, found)

    storage_checks.check_room(
        paths,
        found.parameter_count,
        training,
        config.checkpoints,
        has_validation=bool(dataset.validation or dataset.validation_fraction),
        dtype=(config.output.dtype if config.output else None) or found.dtype,
    )

    files = inputs.find_data(dataset, config.mounts, downloads)
    side_files.check(paths.model, model.source)
    longest = min(MAX_LENGTH, found.max_length or MAX_LENGTH)
    recipe = _recipe(paths.model, model.source, dataset, training, files.template, longest)
    rehearsal.run(config, paths, recipe, report.advance)

    tokenizer = digest_of_tokenizer(paths.model, model.source)
    digests = digest_of_prepared_data(files, tokenizer, dataset, training, report.advance)
    earlier_run = earlier_digest_of_run(found.revision, digests.earlier, dataset, training)
    prepared_digest = _rows_to_use(paths, digests, earlier_run)
    target = paths.prepared(prepared_digest)

    def build(rows: Path, parts: Path) -> PreparedData:
        return Builder(
            recipe,
            rows,
            parts,
            report,
            packing=training.packing,
            validation_fraction=dataset.validation_fraction,
        ).build(files.train, files.validation)

    provide_prepared_folder(target, config.job_uid, cache.uri, build, report.advance)
    data, notes = prepared.summary(target, dataset.train), prepared.notes(target)
    inputs.check_weights(dataset.train, data)

    rows_digest = _digest_of_rows(target, report.advance)
    revision = config.model_revision or found.revision
    mine = RunFile(
        job_uid=config.job_uid,
        job_name=config.job_name,
        job_namespace=config.job_namespace,
        model_revision=revision,
        run_digest=digest_of_run(found.digest, rows_digest, dataset, training),
        forward_pass=check.forward_pass,
    )
    run_digest = ownership.claim(
        paths,
        mine,
        config.checkpoints.on_existing,
        config.unfinished_owners,
        earlier_run,
    )
    return PrepareResult(
        prepared_digest=prepared_digest,
        run_digest=run_digest,
        model_revision=revision,
        parameter_count=found.parameter_count,
        forward_pass=check.forward_pass,
        model_facts=memory_facts.of_folder(paths.model, training),
        left_out=notes.left_out or None,
        warnings=notes.warnings or None,
        data=data,
        finished=read_export(paths, config.job_uid, run_digest),
    )


def _recipe(
    model: Path,
    model_name: str,
    dataset: Dataset,
    training: Training,
    template: str | None,
    longest: int,
) -> Recipe:
    return Recipe(
        model=model,
        model_name=model_name,
        loss_on=inputs.loss_on(dataset, training),
        template=template,
        overlong=dataset.overlong,
        length=training.sequence_length,
        longest=longest,
        special_tokens=inputs.special_tokens(dataset),
    )


def _rows_to_use(paths: RunPaths, digests: PreparedDigests, earlier_run: str) -> str:
    """Return the digest of the rows that this job trains on.

    A run that began under an earlier version continues with its own rows if the cache still has
    them, because this version may make others from the same data.
    """
    is_earlier = ownership.digest_on_storage(paths) == earlier_run
    are_kept = (paths.prepared(digests.earlier) / prepared.CARD).is_file()
    return digests.earlier if is_earlier and are_kept else digests.current


def _digest_of_rows(folder: Path, advance: Callable[[], None]) -> str:
    """Return the digest of prepared rows, which is beside them unless an earlier version made them.

    It is then written there, if that is possible.
    """
    file = folder / prepared.DIGEST
    if file.is_file():
        return file.read_text()
    digest = prepared.digest_of_rows(folder, advance)
    with contextlib.suppress(OSError):
        write_atomic(file, digest)
    return digest


def provide_prepared_folder(
    target: Path, job_uid: str, cache_uri: str, build: Build, advance: Callable[[], None]
) -> None:
    """Make sure that the prepared folder `target` exists; its name is the digest of its contents.

    It is built under another name and renamed. The name of the unfinished folder contains the job
    and the digest: after a kill, the next prepare pod of the job continues with its finished parts.
    Raises TrainerError (73) if the cache cannot be written, and the errors of `build`.
    """
    if (target / prepared.CARD).is_file():
        _log.info("data is already prepared: %s", target)
        return
    building = target.parent / f".building-{job_uid}-{target.name[:16]}"
    rows = building / f"rows-{uuid4().hex}"
    try:
        _remove_abandoned(target.parent, f".building-{job_uid}-", building.name)
        rows.mkdir(parents=True)
        summary = build(rows, building / "parts")
        (rows / prepared.CARD).write_text(summary.to_json())
        (rows / prepared.DIGEST).write_text(prepared.digest_of_rows(rows, advance))
        sync_tree(rows)
        # If another job has built the same data meanwhile, its rows are equal: same digest.
        take_place(rows, target)
    except OSError as error:
        shutil.rmtree(building, ignore_errors=True)
        raise not_writable(cache_uri, error) from error
    except TrainerError as error:
        if is_permanent(error.code, prepare=True):
            shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(rows, ignore_errors=True)
    shutil.rmtree(building, ignore_errors=True)


def _remove_abandoned(folder: Path, own: str, current: str) -> None:
    """Remove unfinished folders: this job's of other data at once, those of other jobs later."""
    for partial, abandoned in unfinished(folder, ".building-*"):
        if partial.name != current and (partial.name.startswith(own) or abandoned):
            shutil.rmtree(partial, ignore_errors=True)
