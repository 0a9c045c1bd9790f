"""Which checkpoint becomes the finished model."""

import logging
from collections.abc import Callable
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir import evaluations
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)


def checkpoint(
    config: RunConfig, paths: RunPaths, final_step: int, advance: Callable[[], None]
) -> tuple[Path, Manifest]:
    """The best or last one, by output.weights, every file of it whole; TrainerError 78.

    The last step's must be whole either way: without it the run is not over. Retryable: the next
    attempt resumes before the damage and trains the rest again.
    """
    last = store.newest_valid(paths, config.run_digest or "", advance)
    if last is None or last[1].step != final_step:
        found = f"the newest valid one is of step {last[1].step}" if last else "there is none"
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"{config.checkpoints.storage}: the checkpoint of the last step ({final_step}) is "
            f"damaged or absent, {found}; the next attempt trains the rest again",
            reason="CheckpointDamaged",
        )
    wanted = config.output.weights if config.output else None
    return last if wanted == "Last" else _best(config, paths, last, advance)


def _best(
    config: RunConfig,
    paths: RunPaths,
    last: tuple[Path, Manifest],
    advance: Callable[[], None],
) -> tuple[Path, Manifest]:
    """That with the lowest validation loss; the last one where nothing was measured."""
    measured = evaluations.read(paths).losses()
    losses = {}
    for folder, manifest in store.candidates(paths, config.run_digest or ""):
        # The last step of a run that was stopped there is measured after it was saved.
        loss = manifest.validation_loss or measured.get(manifest.step)
        if loss is not None:
            losses[folder] = (loss, manifest.step, manifest)
    for folder, (loss, step, manifest) in sorted(losses.items(), key=lambda item: item[1][:2]):
        if folder == last[0] or store.damaged_file(folder, manifest, advance) is None:
            _log.info("the best checkpoint is that of step %d, validation loss %.4f", step, loss)
            return folder, manifest
        _log.error("%s, the best checkpoint, is damaged; taking the next best", folder.name)
    return last
