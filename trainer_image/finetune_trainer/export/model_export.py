"""The export of a run: from checkpoint files to a Hugging Face model folder.

No process group, no device and no DeepSpeed are needed: the fp32 master weights are read slice by
slice, rounded to the compute type and written in the order of the base model's files. All other
files are those of the base model, changed only where training made a change necessary. See
docs/use/result.md.
"""

import shutil

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Output
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.checkpoint.storage import RunStorage
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import prepared
from finetune_trainer.export import (
    card,
    contents,
    load_back,
    metadata_files,
    publish,
    select,
    weights,
)
from finetune_trainer.run_dir import evaluations, finished
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.tracking import run_log

_DTYPES = {"BF16": torch.bfloat16, "FP32": torch.float32}


def run(
    config: RunConfig, paths: RunPaths, report: Reporter, epoch: int, final_step: int
) -> Output:
    """Export the model of a run that ended at `final_step`, for the gang that holds `epoch`.

    1. If an earlier attempt has exported this run, return that model.
    2. Choose the best or the last checkpoint.
    3. Write weights, metadata and model card into a folder that only this gang uses.
    4. Load the folder back with transformers and compare it with the checkpoint.
    5. Rename the folder to `final`.

    Raises TrainerError 79 if a newer gang owns the storage, 78 if the last checkpoint is damaged
    or the model does not load back as it was trained, 73 if storage cannot be written.
    """
    report.stage("Exporting")
    storage = RunStorage(
        paths, config.job_uid, config.run_digest or "", config.attempt, fence_epoch=epoch
    )
    exported = finished.read(paths, storage.job_uid, storage.run_digest)
    if exported is not None:
        return exported
    wanted = config.output.weights if config.output else None
    folder, manifest = select.checkpoint(
        paths, storage.run_digest, final_step, wanted, report.advance
    )
    partial = publish.partial_folder(storage)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        reader = CheckpointReader(folder, manifest)
        model = contents.of(paths.model, reader, _DTYPES[config.training.precision])
        digests = weights.write(model, reader, partial, report.advance)
        template = prepared.chat_template(paths.prepared(config.prepared_digest or ""))
        metadata_files.write(paths.model, partial, model, template)
        text = _card(config, paths, manifest, model, digests).render()
        (partial / "README.md").write_text(text, encoding="utf-8")
        publish.make_readable(partial)
        load_back.check(partial, model, reader, report.advance)
        return publish.publish(storage, partial, manifest.step)
    except OSError as error:
        text = f"{paths.storage_uri}: the model could not be written ({error})"
        raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _card(
    config: RunConfig,
    paths: RunPaths,
    manifest: Manifest,
    model: contents.Contents,
    digests: dict[str, str],
) -> card.ModelCard:
    training_loss = run_log.train_loss(paths, manifest.step)
    measured = evaluations.read(paths).summary()
    return card.ModelCard(
        name=config.job_name,
        base=config.model.source,
        step=manifest.step,
        run_digest=manifest.run_digest,
        model=model,
        losses=card.losses(training_loss, manifest.validation_loss, measured),
        data=prepared.summary(paths.prepared(config.prepared_digest or ""), config.dataset.train),
        training=config.training,
        plan=config.plan,
        digests=digests,
    )
