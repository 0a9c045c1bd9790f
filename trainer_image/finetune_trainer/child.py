"""Work of the supervisor's child processes that needs no process group.

`python -m finetune_trainer.child prepare` does the work of the prepare pod.
`python -m finetune_trainer.child export EPOCH STEP` exports the model of a run that ended at STEP,
on behalf of the gang that holds the fence epoch EPOCH.
"""

import logging
import signal
import sys
import traceback
from typing import NoReturn

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_trainer.common import garbage_collection, host_memory
from finetune_trainer.common.environment import run_config
from finetune_trainer.common.errors import TrainerError, one_line
from finetune_trainer.common.reporter import ChannelReporter
from finetune_trainer.run_dir.paths import RunPaths

_TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Do the work that the arguments name, report its result and return the exit code."""
    garbage_collection.collect_rarely()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s [{sys.argv[1]}] %(message)s", stream=sys.stderr
    )
    termination = _Termination()
    report = ChannelReporter.from_environment()
    try:
        config = run_config()
        if sys.argv[1] == "prepare":
            from finetune_trainer.prepare import preparation

            report.result(prepared=preparation.run(config, report).to_dict())
        else:
            _export(config, int(sys.argv[2]), int(sys.argv[3]), report)
    except TrainerError as error:
        report.error(error)
        return int(error.code)
    except Exception as error:
        if termination.requested:
            return _TERMINATED
        traceback.print_exc()
        if not host_memory.is_exhausted(error):
            return _unexpected(error, report)
        text = host_memory.message(host_memory.cause(error))
        report.error(TrainerError(ExitCode.OUT_OF_MEMORY, text))
        return int(ExitCode.OUT_OF_MEMORY)
    return 0


def _unexpected(error: Exception, report: ChannelReporter) -> int:
    """Report that an export failed for a reason that no check knows. Return the exit code."""
    if sys.argv[1] == "prepare":
        return 1
    from finetune_trainer.export.model_export import FINISH_LATER

    text = f"the export failed ({type(error).__name__}: {one_line(error)}); see the log of worker 0"
    report.error(TrainerError(ExitCode.ENVIRONMENT_UNUSABLE, text + FINISH_LATER))
    return int(ExitCode.ENVIRONMENT_UNUSABLE)


class _Termination:
    """Ends the process on SIGTERM with the usual exit code, after `finally` blocks have run.

    The handler's SystemExit can surface as another exception, because modules written in C replace
    it while they are imported. `requested` distinguishes that case from a real failure.
    """

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, *_: object) -> NoReturn:
        self.requested = True
        raise SystemExit(_TERMINATED)


def _export(config: RunConfig, epoch: int, step: int, report: ChannelReporter) -> None:
    from finetune_trainer.export import model_export

    output = model_export.run(config, RunPaths.of(config), report, epoch, step)
    report.result(output=output.to_dict())


if __name__ == "__main__":
    sys.exit(main())
