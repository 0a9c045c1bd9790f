"""Runs a command while a cluster is up: `python -m finetune_local.demo.run_with_cluster NAME CMD`.

The demo starts its operator this way, so that the operator ends when the cluster is taken down.
"""

import signal
import subprocess
import sys
import time

from finetune_local.cluster import Cluster, die_with_parent


def main() -> int:
    """Return the exit code of the command, or 0 if the cluster ended first."""
    cluster, command = Cluster(sys.argv[1]), sys.argv[2:]
    supervisor = cluster.supervisor()
    if supervisor is None:
        return 0
    # The hook is safe, because only the main thread starts processes.
    child = subprocess.Popen(command, preexec_fn=die_with_parent)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while child.poll() is None:
        # A new cluster of the same name may be up already; the command belongs to the old one.
        if cluster.supervisor() != supervisor:
            child.terminate()
            child.wait()
            return 0
        time.sleep(0.5)
    return child.returncode


if __name__ == "__main__":
    sys.exit(main())
