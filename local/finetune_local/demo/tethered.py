"""Run a command for as long as a cluster is up: `python -m finetune_local.demo.tethered NAME CMD`.

The demo's operator is started this way, so that taking the cluster down ends it too.
"""

import signal
import subprocess
import sys
import time

from finetune_local.cluster import Cluster, die_with_parent


def main() -> int:
    """Exit code of the command, 0 when the cluster ended first."""
    cluster, command = Cluster(sys.argv[1]), sys.argv[2:]
    holder = cluster.supervisor()
    if holder is None:
        return 0
    # The one thread that will fork is the main thread, so the hook is safe.
    child = subprocess.Popen(command, preexec_fn=die_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        # Another one of that name may be up already: it is not the one we belong to.
        if cluster.supervisor() != holder:
            child.terminate()
            child.wait()
            return 0
        time.sleep(0.5)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
