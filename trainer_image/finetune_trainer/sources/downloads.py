"""Downloaded folders of the cache, which exist under their name only when they are complete.

A folder is built under another name and renamed. The unfinished one carries the job's uid: the same
job continues where a killed pod stopped, and two jobs that download the same files do not write
into each other's (both download, one of the two folders is kept).
"""

import errno
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.run_dir.files import sync_folder, sync_tree, take_place, unfinished
from finetune_trainer.run_dir.paths import Cache

_log = logging.getLogger(__name__)
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Downloads:
    """The downloads of one job into its cache."""

    cache: Cache
    job_uid: str
    report: Reporter

    def provide(self, target: Path, fill: Callable[[Path], None]) -> Path:
        """Return `target`, a folder below the cache, after `fill` has filled it if necessary.

        `fill` gets the unfinished folder with what an earlier try left in it. TrainerError 73 if
        the cache cannot be written; what was downloaded is kept for the next try.
        """
        if target.is_dir():
            _log.info("already downloaded: %s", target)
            return target
        own = f".downloading-{self.job_uid}-"
        partial = target.parent / f"{own}{target.name}"
        try:
            _remove_abandoned(target.parent, own)
            partial.mkdir(parents=True, exist_ok=True)
            fill(partial)
            sync_tree(partial)
            if not take_place(partial, target):  # another job has downloaded the same meanwhile
                shutil.rmtree(partial, ignore_errors=True)
            sync_folder(target.parent)
        except OSError as error:
            raise TrainerError(
                ExitCode.STORAGE_NOT_WRITABLE,
                f"{self.cache.uri}: "
                + (
                    "no space is left for a download; make room, or name another cache"
                    if error.errno in _FULL
                    else f"a download cannot be written ({error.strerror or error})"
                ),
            ) from error
        return target


def _remove_abandoned(parent: Path, own: str) -> None:
    for partial, abandoned in unfinished(parent, ".downloading-*"):
        if abandoned and not partial.name.startswith(own):
            shutil.rmtree(partial, ignore_errors=True)
