"""The work of the prepare pod: finds everything that can go wrong before a device is held.

Writes only below `cache/` (a new folder, then a rename) and `run.json`, so it needs no fence.
"""

import logging
from pathlib import Path

from finetune_api.progress import DataSummary
from finetune_api.run import PrepareResult, RunConfig
from finetune_api.spec import Dataset, Training
from finetune_api.storage import RunFile
from finetune_api.uri import is_claim
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import prepared
from finetune_trainer.data.build import Builder
from finetune_trainer.data.tokenize_block import Recipe
from finetune_trainer.prepare import digests, inputs, prepared_folder, storage_checks
from finetune_trainer.run_dir import finished, ownership
from finetune_trainer.run_dir.paths import Cache, RunPaths, claim_path
from finetune_trainer.sources.downloads import Downloads
from finetune_trainer.sources.remote_inputs import download_model

_log = logging.getLogger(__name__)


def run(config: RunConfig, report: Reporter) -> PrepareResult:
    """Check all inputs and build the prepared data; TrainerError gives the problem and a remedy.

    1. Check that storage and cache can be written.
    2. Download the model, unless it is on a claim, and check it.
    3. Check that storage has room for checkpoints and the final model.
    4. Find the files of the data, downloading those that are not on a claim.
    5. Build the packed rows, unless the cache has rows with the same digest.
    6. Claim the storage for this job.
    """
    report.stage("PreparingData")
    model, dataset, training = config.model, config.dataset, config.training
    storage, cache = config.checkpoints.storage, Cache.of(config)
    storage_checks.check_writable(claim_path(storage, config.mounts), storage)
    storage_checks.check_writable(cache.folder, cache.uri)

    downloads = Downloads(cache, config.job_uid, report)
    if not is_claim(model.source):
        _, revision = download_model(model, downloads)
        _log.info("%s is %s", model.source, revision)
        config = config.replace(model_revision=revision)
    paths = RunPaths.of(config)
    found = inputs.inspect_model(paths.model, model, config.mounts, downloads)
    inputs.check_sequence_length(training.sequence_length, found)

    storage_checks.check_room(
        paths,
        found.parameter_count,
        training,
        config.checkpoints,
        has_validation=bool(dataset.validation or dataset.validation_fraction),
    )

    files = inputs.find_data(dataset, config.mounts, downloads)

    tokenizer = digests.of_tokenizer(paths.model, model.source)
    prepared_digest = digests.of_prepared_data(files, tokenizer, dataset, training, report.advance)
    target = paths.prepared(prepared_digest)
    recipe = _recipe(paths.model, model.source, dataset, training, files.template)

    def build(rows: Path, parts: Path) -> DataSummary:
        return Builder(
            recipe,
            rows,
            parts,
            report,
            packing=training.packing,
            validation_fraction=dataset.validation_fraction,
        ).build(files.train, files.validation)

    prepared_folder.provide(target, config.job_uid, cache.uri, build)
    data = prepared.summary(target, dataset.train)
    inputs.check_weights(dataset.train, data)

    run_digest = digests.of_run(found.revision, prepared_digest, dataset, training)
    revision = config.model_revision or found.revision
    mine = RunFile(
        job_uid=config.job_uid,
        job_name=config.job_name,
        job_namespace=config.job_namespace,
        model_revision=revision,
        run_digest=run_digest,
    )
    ownership.claim(paths, mine, config.checkpoints.on_existing)
    return PrepareResult(
        prepared_digest=prepared_digest,
        run_digest=run_digest,
        model_revision=revision,
        parameter_count=found.parameter_count,
        data=data,
        finished=finished.read(paths, config.job_uid, run_digest),
    )


def _recipe(
    model: Path, model_name: str, dataset: Dataset, training: Training, template: str | None
) -> Recipe:
    return Recipe(
        model=model,
        model_name=model_name,
        loss_on=digests.loss_on(dataset, training),
        template=template,
        overlong=dataset.overlong,
        length=training.sequence_length,
    )
