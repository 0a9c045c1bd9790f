"""The finished model: a Hugging Face folder made from checkpoint files, loaded back and compared.

No process group, no device, no DeepSpeed: the fp32 master is read slice by slice, rounded to the
compute type, and written as the base model's files are laid out. What the folder holds beside the
weights are the base's own files; only what training changed is changed. See docs/export.md.
"""

import shutil

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Output
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint.read import CheckpointReader
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
    """Export the best or last checkpoint on behalf of the gang that holds `epoch`.

    `final_step` is that with which training ended.
    TrainerError 79 when a newer gang owns the storage, 78 when the last checkpoint is damaged or
    the model does not load back as it was, 73 when storage cannot be written.
    """
    report.stage("Exporting")
    done = finished.read(paths, config.job_uid, config.run_digest or "")
    if done is not None:
        return done
    folder, manifest = select.checkpoint(config, paths, final_step, report.advance)
    partial = publish.partial_folder(paths, epoch)  # ours alone: an older gang may still write
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        reader = CheckpointReader(folder, manifest)
        model = contents.of(paths.model, reader, _DTYPES[config.training.precision])
        digests = weights.write(model, reader, partial, report.advance)
        template = prepared.chat_template(paths.prepared(config.prepared_digest or ""))
        metadata_files.write(paths.model, partial, model, template)
        text = _card(config, manifest, paths, model, digests)
        (partial / "README.md").write_text(text, encoding="utf-8")
        publish.settle(partial)
        load_back.check(partial, model, reader, report.advance)
        return publish.publish(config, paths, manifest, partial, epoch)
    except OSError as error:
        text = f"{config.checkpoints.storage}: the model could not be written ({error})"
        raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _card(
    config: RunConfig,
    manifest: Manifest,
    paths: RunPaths,
    model: contents.Contents,
    digests: dict[str, str],
) -> str:
    data = prepared.summary(paths.prepared(config.prepared_digest or ""), config)
    measured = evaluations.read(paths).summary()
    losses = card.losses(run_log.train_loss(paths, manifest.step), manifest, measured)
    return card.render(config, manifest, data, losses, model, digests)
