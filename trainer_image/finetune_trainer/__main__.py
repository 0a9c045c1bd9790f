"""`python -m finetune_trainer`: the command of every pod of a job."""

from finetune_trainer.common.stop_signal import StopSignal

stop = StopSignal()  # before the imports below: they take a while, and a stop may come meanwhile

import logging  # noqa: E402
import sys  # noqa: E402

from finetune_trainer.pod.supervisor import Supervisor  # noqa: E402

_HELP = """finetune_trainer: the supervisor of a trainer pod.

It takes --help, --version and no other argument: the operator describes the run in the environment
(FINETUNE_RUN, PET_*), see docs/run-contract.md. Started by hand it says what is missing.
"""


def main() -> int:
    """Run; the exit code is that of docs/exit-codes.md."""
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(version("finetune-operator"))
        return 0
    if len(sys.argv) > 1:
        print(_HELP)
        return 0 if sys.argv[1] in ("-h", "--help") else 64
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [supervisor] %(message)s")
    return Supervisor(stop).run()


if __name__ == "__main__":
    sys.exit(main())
