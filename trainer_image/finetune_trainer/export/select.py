"""The choice of the checkpoint that is exported."""

import logging
from collections.abc import Callable
from pathlib import Path

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir import evaluations
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)


def checkpoint(
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
        found = f"the newest valid one is of step {last[1].step}" if last else "no other is valid"
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"{paths.storage_uri}: the checkpoint of the last step ({final_step}) is damaged or "
            f"missing, {found}; the next attempt trains the rest again",
            reason=reasons.CHECKPOINT_DAMAGED,
        )
    return last if wanted == "Last" else _best(paths, run_digest, last, advance)


def _best(
    paths: RunPaths,
    run_digest: str,
    last: tuple[Path, Manifest],
    advance: Callable[[], None],
) -> tuple[Path, Manifest]:
    """Return the checkpoint with the lowest validation loss, or the last one without any loss."""
    measured = evaluations.read(paths).losses()
    losses = {}
    for folder, manifest in store.candidates(paths, run_digest):
        # If a run was stopped at its last step, that step was measured after it was saved.
        loss = manifest.validation_loss or measured.get(manifest.step)
        if loss is not None:
            losses[folder] = (loss, manifest.step, manifest)
    for folder, (loss, step, manifest) in sorted(losses.items(), key=lambda item: item[1][:2]):
        if folder == last[0] or store.damaged_file(folder, manifest, advance) is None:
            _log.info("the best checkpoint is that of step %d, validation loss %.4f", step, loss)
            return folder, manifest
        _log.error("%s, the best checkpoint, is damaged; taking the next best", folder.name)
    return last
