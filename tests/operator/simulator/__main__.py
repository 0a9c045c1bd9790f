"""The command `python -m tests.operator.simulator`: runs histories until one fails."""

import argparse
import multiprocessing
import sys
import time

from tests.operator.simulator.shards import simulate


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__, allow_abbrev=False)
    parser.add_argument("histories", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    arguments = parser.parse_args()
    begin, done = time.monotonic(), 0
    for size, found in simulate(arguments.histories, arguments.seed, arguments.processes):
        if found:
            print(f"\n{found}", file=sys.stderr)
            return 1
        done += size
        rate = done / (time.monotonic() - begin)
        print(f"\r{done} of {arguments.histories} histories, {rate:.0f}/s ", end="", flush=True)
    print(f"\nno history breaks an invariant (seed {arguments.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
