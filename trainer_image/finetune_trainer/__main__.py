"""`python -m finetune_trainer`: the command of every pod of a job."""

import logging
import sys

from finetune_trainer.supervisor import Supervisor

_HELP = """finetune_trainer: the supervisor of a trainer pod.

It takes no arguments: the operator describes the run in the environment (FINETUNE_RUN, PET_*), see
docs/run-contract.md. Started by hand it says what is missing.
"""


def main() -> int:
    """Run; the exit code is that of docs/exit-codes.md."""
    if len(sys.argv) > 1:
        print(_HELP)
        return 0 if sys.argv[1] in ("-h", "--help") else 64
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [supervisor] %(message)s")
    return Supervisor().run()


if __name__ == "__main__":
    sys.exit(main())
