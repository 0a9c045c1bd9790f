"""The export of a run: from checkpoint files to a Hugging Face model folder.

No process group, no device and no DeepSpeed are needed: the fp32 master weights are read slice by
slice, rounded to the type of the output and written in the order of the base model's files. All
other files are those of the base model, changed only where training made a change necessary. See
docs/use/result.md.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Output
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.common import machine
from finetune_trainer.common.errors import TrainerError, unreadable
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data import prepared
from finetune_trainer.export import card, load_back, metadata_files, publish, weights
from finetune_trainer.export.weights import Contents, contents_of
from finetune_trainer.model import folder
from finetune_trainer.run_dir import evaluations, records
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.run_dir.records import read_export
from finetune_trainer.tracking import run_log

DTYPES = {"BF16": torch.bfloat16, "FP16": torch.float16, "FP32": torch.float32}
FINISH_LATER = (
    "; training is complete, and its checkpoint is kept: once the cause is removed, a new job with "
    "the same model, data and training and checkpoints.onExisting: Resume finishes the export"
)
_log = logging.getLogger(__name__)


def run(
    config: RunConfig, paths: RunPaths, report: Reporter, epoch: int, final_step: int
) -> Output:
    """Report the stage, export the model and log its place. See `export`.

    An error says that the run can be finished later, unless the next attempt repeats a part of it.
    """
    report.stage("Exporting")
    try:
        output = export(config, paths, report.advance, epoch, final_step)
    except TrainerError as error:
        if error.code == ExitCode.FENCED or error.reason == reasons.CHECKPOINT_DAMAGED:
            raise
        raise TrainerError(error.code, error.message + FINISH_LATER, error.reason) from error
    _log.info("exported %s (%d bytes)", output.location, output.size_bytes)
    return output


def export(
    config: RunConfig, paths: RunPaths, advance: Callable[[], None], epoch: int, final_step: int
) -> Output:
    """Export the model of a run that ended at `final_step`, for the gang that holds `epoch`.

    1. If an earlier attempt has exported this run, return that model.
    2. Choose the best or the last checkpoint.
    3. Write weights, metadata and model card into a folder that only this gang uses.
    4. Load the folder back with transformers and compare it with the checkpoint.
    5. Rename the folder to `final`.

    Raises TrainerError 79 if a newer gang owns the storage, 78 if the last checkpoint is damaged
    or the model does not load back as it was trained, 73 if storage cannot be written, 64, 66 or 77
    if an input was lost or damaged since preparation checked it.
    """
    storage = RunStorage(
        paths, config.job_uid, config.run_digest or "", config.attempt, fence_epoch=epoch
    )
    exported = read_export(paths, storage.job_uid, storage.run_digest)
    if exported is not None:
        return exported
    wanted = config.output.weights if config.output else None
    chosen, manifest = choose_checkpoint(paths, storage.run_digest, final_step, wanted, advance)
    partial = publish.partial_folder(storage)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        reader = CheckpointReader(chosen, manifest)
        model = contents_of(paths.model, reader, _dtype(config, paths.model))
        digests = weights.write(model, reader, partial, advance)
        template = prepared.chat_template(paths.prepared(config.prepared_digest or ""))
        metadata_files.write(paths.model, partial, model, template)
        has_template = bool(metadata_files.templates(partial))
        text = _card(config, paths, manifest, model, digests, has_template=has_template).render()
        (partial / "README.md").write_text(text, encoding="utf-8")
        publish.make_readable(partial)
        load_back.check(partial, model, reader, advance)
        return publish.publish(storage, partial, manifest.step)
    except OSError as error:
        file = Path(error.filename or "")
        if file.is_relative_to(paths.model):
            raise unreadable(config.model.source, error) from error
        if file.is_relative_to(paths.cache / "prepared"):
            raise unreadable("the prepared data", error) from error
        text = f"{paths.storage_uri}: the model could not be written ({error})"
        raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dtype(config: RunConfig, base: Path) -> torch.dtype:
    wanted = config.output.dtype if config.output else None
    return DTYPES[wanted or folder.stored_dtype(base, config.model.source)]


def _card(
    config: RunConfig,
    paths: RunPaths,
    manifest: Manifest,
    model: Contents,
    digests: dict[str, str],
    *,
    has_template: bool,
) -> card.ModelCard:
    training_loss = run_log.train_loss(paths, manifest.step)
    measured = evaluations.read(paths).summary()
    return card.ModelCard(
        name=config.job_name,
        origin=_origin(config, paths, manifest),
        step=manifest.step,
        run_digest=manifest.run_digest,
        has_chat_template=has_template,
        model=model,
        losses=card.losses(training_loss, manifest.validation_loss, measured),
        data=prepared.summary(paths.prepared(config.prepared_digest or ""), config.dataset.train),
        training=config.training,
        plan=config.plan,
        digests=digests,
    )


def _origin(config: RunConfig, paths: RunPaths, manifest: Manifest) -> card.Origin:
    rows = paths.prepared(config.prepared_digest or "") / prepared.DIGEST
    return card.Origin(
        base=config.model.source,
        revision=config.model_revision,
        begin=records.first_start(paths),
        end=manifest.creation_time,
        processes=manifest.world_size,
        device=_device(),
        prepared_digest=config.prepared_digest or "",
        rows_digest=rows.read_text() if rows.is_file() else None,
    )


def _device() -> str:
    """Return the name of this pod's devices. A card without it is better than no model."""
    if not machine.has_gpus():
        return "CPUs"
    try:
        return torch.cuda.get_device_name()
    except (RuntimeError, AssertionError) as error:
        _log.warning("the name of the GPU could not be found out: %s", error)
        return "GPUs"


def choose_checkpoint(
    paths: RunPaths,
    run_digest: str,
    final_step: int,
    wanted: str | None,
    advance: Callable[[], None],
) -> tuple[Path, Manifest]:
    """Return the checkpoint to export, after all its files matched their checksums.

    `wanted` is output.weights: Last, or otherwise the best one. Raises TrainerError 78 if the
    checkpoint of the last step is damaged or missing, even if another one is wanted, because the
    run is then not finished. The next attempt resumes before the damage and repeats the rest.
    """
    last = store.newest_valid(paths, run_digest, advance)
    if last is None or last[1].step != final_step:
        records.unmark_trained(paths)
        found = f"the newest valid one is of step {last[1].step}" if last else "no other is valid"
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"{paths.storage_uri}: the checkpoint of the last step ({final_step}) is damaged or "
            f"missing, {found}; the next attempt trains the rest again",
            reason=reasons.CHECKPOINT_DAMAGED,
        )
    records.mark_trained(paths, run_digest, final_step)
    return last if wanted == "Last" else _best_checkpoint(paths, run_digest, last, advance)


def _best_checkpoint(
    paths: RunPaths,
    run_digest: str,
    last: tuple[Path, Manifest],
    advance: Callable[[], None],
) -> tuple[Path, Manifest]:
    """Return the checkpoint with the lowest validation loss, or the last one without any loss."""
    measured = evaluations.read(paths).losses()
    losses = {}
    for one, manifest in store.candidates(paths, run_digest):
        # If a run was stopped at its last step, that step was measured after it was saved.
        loss = manifest.validation_loss or measured.get(manifest.step)
        if loss is not None:
            losses[one] = (loss, manifest.step, manifest)
    for one, (loss, step, manifest) in sorted(losses.items(), key=lambda item: item[1][:2]):
        if one == last[0] or store.damaged_file(one, manifest, advance) is None:
            _log.info("the best checkpoint is that of step %d, validation loss %.4f", step, loss)
            return one, manifest
        _log.error("%s, the best checkpoint, is damaged; taking the next best", one.name)
    return last
