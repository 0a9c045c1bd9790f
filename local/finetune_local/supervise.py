"""The process that holds a cluster: `python -m finetune_local.supervise FOLDER`.

It is process 1 of a PID namespace, so its death, however it comes, ends every process of the
cluster, and the last one takes the mounts of the namespace with it. A component that ends is
started again, later each time, as a machine's service manager would; not one that is held down
(`Cluster.kill_component`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from finetune_local.components import HELD, PERIOD
from finetune_local.layout import Component

_LONGEST_WAIT = 20.0  # s


@dataclass
class _Child:
    component: Component
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    start_at: float = 0.0
    started: float = field(default=0.0)


def main() -> int:
    """Start the components, keep them running, end on SIGTERM."""
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
        wait = min(0.5 * 2**child.failures, _LONGEST_WAIT)
        child.start_at = now + wait
        _say(f"{child.component.name} ended with {code}; again in {wait:.1f} s")
    if child.process is None and (folder / HELD / child.component.name).exists():
        child.failures, child.start_at = 0, now
    elif child.process is None and now >= child.start_at:
        with (folder / "logs" / f"{child.component.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                child.component.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        child.started = now


def _reap_orphans(children: list[_Child]) -> None:
    """Process 1 inherits what its descendants leave behind."""
    ours = {child.process.pid for child in children if child.process}
    try:
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)
    except ChildProcessError:
        return


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
