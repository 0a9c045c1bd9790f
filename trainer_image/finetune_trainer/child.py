"""Work without a process group in a child of the supervisor: `python -m finetune_trainer.child`.

prepare                          the prepare pod's work
export EPOCH STEP                the finished model of a run that ended with this step
"""

import logging
import signal
import sys
import traceback
from typing import NoReturn

from finetune_api.run import RunConfig
from finetune_trainer.common import garbage_collection
from finetune_trainer.common.channel import ChannelReporter
from finetune_trainer.common.environment import run_config
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.run_dir.paths import RunPaths

_STOPPED = 128 + signal.SIGTERM


def main() -> int:
    """Do the work, tell the result, return the exit code."""
    garbage_collection.seldom()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s [{sys.argv[1]}] %(message)s", stream=sys.stderr
    )
    stop = _Stop()
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
    except Exception:
        if stop.asked:
            return _STOPPED
        traceback.print_exc()
        return 1
    return 0


class _Stop:
    """As the default action of SIGTERM ends a process, except that it may clean up behind itself.

    What it raises may arrive as another exception: modules written in C swallow it while they are
    imported.
    """

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, *_: object) -> NoReturn:
        self.asked = True
        raise SystemExit(_STOPPED)


def _export(config: RunConfig, epoch: int, step: int, report: ChannelReporter) -> None:
    from finetune_trainer.export import model_export

    output = model_export.run(config, RunPaths.of(config), report, epoch, step)
    report.result(output=output.to_dict())


if __name__ == "__main__":
    sys.exit(main())
