"""Builds the prepared folder in the cache, unless a job has built the same data before."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from finetune_api.exit_codes import is_permanent
from finetune_api.progress import DataSummary
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data import prepared
from finetune_trainer.prepare.storage_checks import not_writable
from finetune_trainer.run_dir.files import sync_tree, take_place, unfinished

_log = logging.getLogger(__name__)

Build = Callable[[Path, Path], DataSummary]
"""Writes rows into the first folder, and keeps finished parts of the work in the second."""


def provide(target: Path, job_uid: str, cache_uri: str, build: Build) -> None:
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
