"""The command of every pod of a job: `python -m finetune_trainer` runs the supervisor."""

from finetune_trainer.common.stop_signal import StopSignal

# Before the imports below, because they take a while and SIGTERM can arrive meanwhile.
stop = StopSignal()

import logging  # noqa: E402
import sys  # noqa: E402

from finetune_trainer.pod import supervisor  # noqa: E402

_HELP = """finetune_trainer: the supervisor of a trainer pod.

The only arguments are --help and --version. The operator describes the run in environment
variables (FINETUNE_RUN, PET_*), see docs/reference/run-contract.md. Without them, this program
reports which one is missing.
"""


def main() -> int:
    """Run the supervisor and return the exit code of the pod (finetune_api.exit_codes)."""
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(version("finetune-operator"))
        return 0
    if len(sys.argv) > 1:
        print(_HELP)
        return 0 if sys.argv[1] in ("-h", "--help") else 64
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [supervisor] %(message)s")
    return supervisor.run(stop)


if __name__ == "__main__":
    sys.exit(main())
