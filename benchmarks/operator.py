"""Compares the speed and cost of the operator with Kubeflow's training-operator; prints a table.

API server, etcd and controller manager are real, and both operators are real processes with their
own service accounts. A scripted kubelet in another process binds pods, runs them and serves their
reports. The operators run one after the other on the same control plane, which is cleaned between:

  burst     all jobs are created at once, until every job's status shows that all its pods run
  rest      nothing changes; measures writes and CPU
  training  every job finishes a step every 10 s (only ours, as the other one does not know steps)
  single    a few more jobs, one every 2 s, while the others run

With --finished, our operator starts among many jobs that have ended. The cost of a scrape of its
metrics is measured at the end.

Requests and latencies are taken from the API server's audit log. A latency is the time from the
arrival of the job to the response to the last creation of a pod.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import asyncio
import json
import shutil

from benchmarks.operators import observe, peer, sandbox
from benchmarks.operators.contenders import Contender, Kubeflow, Ours
from benchmarks.operators.controlplane import ControlPlane, clean
from benchmarks.operators.kubelet import NODE
from benchmarks.operators.measurement import Measurement
from benchmarks.operators.show import console, table

from finetune_client.api import Api
from finetune_client.configuration import load_configuration
from finetune_client.errors import ApiError
from finetune_local.build import BuildError
from finetune_local.cache import TREE
from finetune_local.cluster import ClusterError

OUT = TREE / "build" / "benchmarks" / "operator"


def main() -> int:
    """Run the command line: build everything outside of the sandbox, then measure inside."""
    arguments = _parser().parse_args()
    try:
        if sandbox.state() is None:
            for lifted in _peers(arguments):
                peer.build(lifted=lifted)
            return sandbox.run_inside("benchmarks.operator", sys.argv[1:])
        sandbox.set_up()
        return asyncio.run(_run(arguments))
    except (ClusterError, BuildError, peer.PeerError, ApiError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/operator.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--jobs", type=int, default=1000, help="number of jobs in the burst (default: 1000)")
    add("--pods", type=int, default=10, help="pods per job (default: 10)")
    add("--one-gang", type=int, metavar="PODS", help="one job with so many pods and no single jobs")
    add("--ours", action=argparse.BooleanOptionalAction, default=True, help="measure our operator")
    add(
        "--peer",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure Kubeflow's operator",
    )
    add(
        "--released",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure Kubeflow's as released: 20 requests a second, 1 worker",
    )
    add(
        "--lifted",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure Kubeflow's with 2000 requests a second and 8 workers",
    )
    add(
        "--finished",
        type=int,
        default=0,
        metavar="JOBS",
        help="jobs that have already ended when our operator starts (default: 0)",
    )
    add("--singles", type=int, default=30, help="number of single jobs (default: 30)")
    add("--rest", type=int, default=60, help="seconds of rest and of training (default: 60)")
    add("--limit", type=int, default=600, help="maximum seconds of a burst (default: 600)")
    add(
        "--profile",
        action="store_true",
        help="profile ours in the burst with py-spy, from the PATH",
    )
    return parser


def _peers(arguments: argparse.Namespace) -> list[bool]:
    """Return the values of `lifted` of the Kubeflow variants to measure."""
    if not arguments.peer:
        return []
    return [False] * arguments.released + [True] * arguments.lifted


async def _run(arguments: argparse.Namespace) -> int:
    if arguments.one_gang:
        arguments.jobs, arguments.pods, arguments.singles = 1, arguments.one_gang, 0
    contenders: list[Contender] = [Ours()] if arguments.ours else []
    contenders += [Kubeflow(lifted, peer.build(lifted=lifted)) for lifted in _peers(arguments)]
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    ControlPlane.audit_policy = observe.policy(
        sorted({c.user for c in contenders}),
        [(c.collection.split("/")[2], c.plural) for c in contenders],
    )
    console.print("control plane: starting")
    cluster = ControlPlane.up("bench", nodes=0, tied=True)
    figures = {}
    try:
        cluster.kubectl(
            "create",
            "-f",
            "-",
            stdin=f'{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{NODE}"}}}}',
        )
        async with Api(load_configuration(cluster.kubeconfig), timeout=600) as api:
            for contender in contenders:
                measurement = Measurement(cluster, api, contender, arguments, OUT)
                figures[contender.name] = await measurement.run()
                if contender is not contenders[-1]:
                    await clean(api, contender)
    finally:
        for log in (cluster.directory / "logs").iterdir():
            shutil.copy(log, OUT)
        cluster.down()
    (OUT / "figures.json").write_text(json.dumps(figures, indent=1))
    table(figures, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
