"""Runs a command in a container: `python -I -S enter.py CONFIG PROCESS COMMAND ...`.

CONFIG is the configuration of the container's sandbox, and PROCESS the id of its process 1. The
command has the environment and the user of the container, and ends with this process.
"""

import json
import os
import sys
from pathlib import Path

_NOT_STARTED = 126


def main() -> int:
    """Return the exit code of the command, or 128 and the number of the signal that ended it."""
    # Python starts without site-packages, for speed, so the tree is not on the path.
    sys.path.append(str(Path(__file__).parents[2]))
    from finetune_local.node import sandbox

    config, process = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    command = sys.argv[3:]
    sandbox.die_with_parent()
    sandbox.enter_pids(process)
    child = os.fork()
    if child == 0:
        try:
            sandbox.execute_in(config, process, command)
        except OSError as error:
            os.write(2, f"{command[0]}: {error}\n".encode())
        finally:
            os._exit(_NOT_STARTED)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
