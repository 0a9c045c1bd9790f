"""The publication of an export: `final` appears complete, once, and only by the newest gang."""

import contextlib
import errno
import shutil
from pathlib import Path

from finetune_api.progress import Output
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.run_dir.files import sync_folder, write_atomic
from finetune_trainer.run_dir.records import EXPORT_FILE, ExportCard, export_is_complete

_PARTIAL, _ASIDE = "final.tmp-", "final.old-"


def partial_folder(storage: RunStorage) -> Path:
    """Return the folder in which this gang builds the model.

    No other gang uses it: an older gang may still be writing to its own.
    """
    return storage.paths.storage / f"{_PARTIAL}{storage.fence_epoch}"


def make_readable(folder: Path) -> None:
    """Make a folder readable for all users and remove its files from the page cache.

    Servers run as other users. Files in the page cache would not prove that storage holds them.
    """
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.is_file():
            store.drop_from_cache(path)


def publish(storage: RunStorage, partial: Path, step: int) -> Output:
    """Write export.json, check the fence, and rename `partial` to `final`.

    Raises TrainerError 79 if a newer gang holds the fence.
    """
    size = sum(file.stat().st_size for file in partial.iterdir() if file.is_file())
    export = ExportCard(
        job_uid=storage.job_uid, run_digest=storage.run_digest, step=step, size_bytes=size
    )
    write_atomic(partial / EXPORT_FILE, export.to_json())
    (partial / EXPORT_FILE).chmod(0o644)
    storage.check_fence()
    _replace(storage, partial)
    _remove_older(storage)
    final = storage.paths.final
    return Output(location=storage.paths.uri(final), size_bytes=size, verified=True)


def _replace(storage: RunStorage, partial: Path) -> None:
    """Rename `partial` to `final`, unless another gang of this run has published meanwhile.

    NB: this process may have been paused since it checked the fence, for longer than the next gang
    needs to publish. Therefore nothing is deleted in place: an existing folder is moved aside
    first, examined, and moved back if it is this run's complete model.
    """

    def is_this_run(folder: Path) -> bool:
        return export_is_complete(folder, storage.job_uid, storage.run_digest)

    final = storage.paths.final
    aside = final.with_name(f"{_ASIDE}{storage.fence_epoch}")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        final.rename(aside)
    published = aside if is_this_run(aside) else partial
    try:
        published.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Another gang has published since `final` was moved aside.
        if not is_this_run(final):
            raise
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_older(storage: RunStorage) -> None:
    """Remove the folders that older gangs left when they were killed."""
    for prefix in (_PARTIAL, _ASIDE):
        for left in storage.paths.storage.glob(f"{prefix}*"):
            if int(left.name.removeprefix(prefix)) < storage.fence_epoch:
                shutil.rmtree(left, ignore_errors=True)
