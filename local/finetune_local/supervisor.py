"""The supervisor of a cluster: `python -m finetune_local.supervisor FOLDER`.

It is process 1 of a PID namespace, so every process of the cluster ends with it, however it ends,
and the mounts of the namespace go with the last process. It starts a component that has ended
again, with a growing delay, as the service manager of a machine would. A component that has a file
in the folder `held` is not started until the file is removed.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from finetune_local.layout import Component

PERIOD = 0.1  # s between two checks of the components
HELD = "held"  # name of the folder
_LONGEST_DELAY = 20.0  # s


@dataclass
class _Child:
    component: Component
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    start_at: float = 0.0
    started: float = field(default=0.0)


def main() -> int:
    """Start the components and keep them running until SIGTERM."""
    folder = Path(sys.argv[1])
    components = [
        Component(**entry) for entry in json.loads((folder / "components.json").read_text())
    ]
    children = [_Child(component) for component in components]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        for child in children:
            _step(child, folder)
        _reap_orphans(children)
        time.sleep(PERIOD)


def _step(child: _Child, folder: Path) -> None:
    now = time.monotonic()
    if child.process is not None and (code := child.process.poll()) is not None:
        child.process = None
        child.failures = 0 if now - child.started > 60 else child.failures + 1
        delay = min(0.5 * 2**child.failures, _LONGEST_DELAY)
        child.start_at = now + delay
        _log(f"{child.component.name} ended with {code}; starting it again in {delay:.1f} s")
    if child.process is None and (folder / HELD / child.component.name).exists():
        child.failures, child.start_at = 0, now
    elif child.process is None and now >= child.start_at:
        with (folder / "logs" / f"{child.component.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                child.component.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        child.started = now


def _reap_orphans(children: list[_Child]) -> None:
    """Wait for ended processes that lost their parents: process 1 becomes their parent."""
    ours = {child.process.pid for child in children if child.process}
    try:
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)
    except ChildProcessError:
        return


def _log(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
