"""Room on storage, asked for before a device is held."""

import math
import shutil

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.paths import RunPaths

_MODEL_BYTES = {"BF16": 2, "FP32": 4}
_REST = 1 << 20  # records, logs, headers


def check(config: RunConfig, paths: RunPaths, parameters: int) -> None:
    """TrainerError 73 when what this run keeps at a time does not fit beside what it has already.

    A file system that does not tell its size is believed to have room.
    """
    count, size = _checkpoints(config), config.training.optimizer.state_bytes * parameters
    model = _MODEL_BYTES[config.training.precision] * parameters
    wanted = count * size + model + _REST
    total, _, free = shutil.disk_usage(paths.storage)
    own = sum(file.stat().st_size for file in paths.checkpoints.rglob("*") if file.is_file())
    if total == 0 or wanted <= free + own:
        return
    raise TrainerError(
        ExitCode.STORAGE_NOT_WRITABLE,
        f"{config.checkpoints.storage}: {_gigabytes(free + own)} free, but this run needs "
        f"{_gigabytes(wanted)}: up to {count} checkpoints of {_gigabytes(size)} at a time and the "
        f"model of {_gigabytes(model)}; make room, use a larger volume or lower "
        "checkpoints.keepLast",
    )


def _checkpoints(config: RunConfig) -> int:
    """Those that are kept, the best one, and the one that is being written.

    Two at least are kept at times: one of before a suspected divergence, and the newest.
    """
    dataset, wanted = config.dataset, config.checkpoints
    best = bool(dataset.validation or dataset.validation_fraction)
    most = max(2, wanted.keep_last) + best + 1
    steps = config.training.max_steps
    if steps and wanted.interval_steps and not wanted.interval_seconds:
        most = min(most, math.ceil(steps / wanted.interval_steps))
    return most


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
