"""Checks of storage before a device is held: can it be written, and is there enough room?"""

import errno
import math
import shutil
from pathlib import Path
from uuid import uuid4

from finetune_api.exit_codes import ExitCode
from finetune_api.spec import Checkpoints, Training
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.files import write_new
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.run_dir.records import trained_step

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_MODEL_BYTES = {"BF16": 2, "FP16": 2, "FP32": 4}  # per parameter
_REST = 1 << 20  # bytes of records, logs and headers


def check_writable(folder: Path, uri: str) -> None:
    """Raise TrainerError (73) if files cannot be created in a folder, whose address is `uri`.

    The check writes as the fence is written, with a sync and a hard link, so that a full disk or a
    file system without links is found now and not by the first attempt.
    """
    probe = folder / f".write-test-{uuid4().hex}"
    try:
        write_new(probe, "x")
        probe.unlink()
    except OSError as error:
        raise not_writable(uri, error) from error


def not_writable(uri: str, error: OSError) -> TrainerError:
    """Return the error of a failed write below `uri`, with its cause and a remedy."""
    return TrainerError(ExitCode.STORAGE_NOT_WRITABLE, f"{uri}: {_cause(error)}")


def _cause(error: OSError) -> str:
    if error.filename2 and error.errno in _NO_LINKS:
        return "the file system has no hard links, which the fence needs; use another volume"
    if error.errno == errno.EROFS:
        return "the volume is mounted read-only; use a claim with access mode ReadWriteMany"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "no permission to write; let the pod's group own the volume "
            "(template.spec.securityContext.fsGroup) or choose another folder"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"a file is in the way ({error.filename}); remove it or choose another folder"
    if error.errno == errno.ENOSPC:
        return "no space is left on the volume; make room"
    return f"cannot be written ({error.strerror or error})"


def check_room(
    paths: RunPaths,
    parameters: int,
    training: Training,
    checkpoints: Checkpoints,
    *,
    has_validation: bool,
    dtype: str,
) -> None:
    """Raise TrainerError (73) if what the run keeps at one time does not fit on its storage.

    `parameters` is the number of parameters of the model, `dtype` the type of the finished one (as
    output.dtype). Checkpoints that the run already has count as room, and a run that is trained
    needs room for its model only. A file system that does not report its size is assumed to have
    room.
    """
    model = _MODEL_BYTES[dtype] * parameters
    if trained_step(paths) is not None:
        _check_room_for_model(paths, model, checkpoints.storage)
        return
    count = _checkpoints_at_once(training.max_steps, checkpoints, has_validation=has_validation)
    size = training.optimizer.state_bytes * parameters
    wanted = count * size + model + _REST
    total, _, free = shutil.disk_usage(paths.storage)
    own = sum(file.stat().st_size for file in paths.checkpoints.rglob("*") if file.is_file())
    if total == 0 or wanted <= free + own:
        return
    raise TrainerError(
        ExitCode.STORAGE_NOT_WRITABLE,
        f"{checkpoints.storage}: {_gigabytes(free + own)} free, but this run needs "
        f"{_gigabytes(wanted)}: up to {count} checkpoints of {_gigabytes(size)} at a time and the "
        f"model of {_gigabytes(model)}; make room, use a larger volume or lower "
        "checkpoints.keepLast",
    )


def _check_room_for_model(paths: RunPaths, model: int, storage: str) -> None:
    """Raise TrainerError (73) if the model of a run that is trained does not fit."""
    total, _, free = shutil.disk_usage(paths.storage)
    if total == 0 or model + _REST <= free:
        return
    raise TrainerError(
        ExitCode.STORAGE_NOT_WRITABLE,
        f"{storage}: {_gigabytes(free)} free, but this run, whose training is complete, needs "
        f"{_gigabytes(model + _REST)} for its model; make room or use a larger volume",
    )


def _checkpoints_at_once(
    max_steps: int | None, checkpoints: Checkpoints, *, has_validation: bool
) -> int:
    """Return how many checkpoints exist at one time: the kept ones, the best, the one in progress.

    At least two are kept: while divergence is suspected, one from before it and the newest.
    """
    most = max(2, checkpoints.keep_last) + has_validation + 1
    if max_steps and checkpoints.interval_steps and not checkpoints.interval_seconds:
        most = min(most, math.ceil(max_steps / checkpoints.interval_steps))
    return most


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
