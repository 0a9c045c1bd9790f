"""`final` appears whole and once, and never instead of a newer gang's."""

import contextlib
import errno
import logging
import shutil
from pathlib import Path

from finetune_api.progress import Output
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint import store
from finetune_trainer.run_dir import fence, finished
from finetune_trainer.run_dir.files import sync_folder, write_atomic
from finetune_trainer.run_dir.paths import RunPaths

_log = logging.getLogger(__name__)
_PARTIAL, _ASIDE = "final.tmp-", "final.old-"


def partial_folder(paths: RunPaths, epoch: int) -> Path:
    """Where the gang that holds this epoch writes."""
    return paths.storage / f"{_PARTIAL}{epoch}"


def settle(folder: Path) -> None:
    """Readable by the user that servers run as, and out of the page cache, which proves nothing."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            store.drop_from_cache(path)


def publish(
    config: RunConfig, paths: RunPaths, manifest: Manifest, partial: Path, epoch: int
) -> Output:
    """Say that it is complete, then rename. TrainerError 79 when a newer gang holds the fence."""
    size = sum(file.stat().st_size for file in partial.iterdir() if file.is_file())
    card = finished.ExportCard(
        job_uid=config.job_uid,
        run_digest=config.run_digest or "",
        step=manifest.step,
        size_bytes=size,
    )
    write_atomic(partial / finished.FILE, card.to_json())
    (partial / finished.FILE).chmod(0o644)
    fence.check(paths, epoch, config.attempt)
    _replace(config, paths, partial, epoch)
    _sweep(paths, epoch)
    _log.info("exported step %d to %s (%d bytes)", manifest.step, paths.final, size)
    return Output(location=paths.uri(paths.final), size_bytes=size, verified=True)


def _replace(config: RunConfig, paths: RunPaths, partial: Path, epoch: int) -> None:
    """Put the model where it belongs, unless another gang of this run has meanwhile.

    NB: this process may have been paused since it read the fence, for longer than the next gang
    needs to publish. So nothing is deleted in place: what is there is moved aside first, looked at,
    and moved back when it is this run's finished model.
    """
    aside = paths.storage / f"{_ASIDE}{epoch}"
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        paths.final.rename(aside)
    whole = finished.is_complete(aside, config.job_uid, config.run_digest or "")
    try:
        (aside if whole else partial).rename(paths.final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Another gang was faster by a moment.
        if not finished.is_complete(paths.final, config.job_uid, config.run_digest or ""):
            raise
    sync_folder(paths.storage)
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(paths: RunPaths, epoch: int) -> None:
    """What older gangs left when they were killed."""
    for prefix in (_PARTIAL, _ASIDE):
        for left in paths.storage.glob(f"{prefix}*"):
            if int(left.name.removeprefix(prefix)) < epoch:
                shutil.rmtree(left, ignore_errors=True)
