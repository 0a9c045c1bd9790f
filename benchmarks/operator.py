"""How fast and how frugal the operator is, beside Kubeflow's training-operator: prints a table.

A real API server, etcd and controller manager; both operators as real processes under their own
service accounts; pods are bound, run and report by a scripted kubelet in a process of its own. Each
operator in turn, on the same control plane, cleaned in between:

  burst     all jobs are applied at once, until every job's status says that all of its pods run
  rest      nothing changes: what is written, what does it cost
  training  every job finishes a step every 10 s (ours only: the other one does not know steps)
  single    a few more jobs, one every 2 s, beside those that run

Requests and latencies are the API server's own, from its audit log: from the arrival of the job to
the answer to the last create of a pod.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # Started as a file: this folder would hide the standard library's `operator`.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import asyncio
import json
import shutil

from benchmarks.operators import observe, peer, sandbox
from benchmarks.operators.api import Api, RefusedError
from benchmarks.operators.contenders import Contender, Kubeflow, Ours
from benchmarks.operators.controlplane import ControlPlane, clean
from benchmarks.operators.kubelet import NODE
from benchmarks.operators.measurement import Measurement
from benchmarks.operators.show import console, table

from finetune_local.build import BuildError
from finetune_local.cache import TREE
from finetune_local.cluster import ClusterError

OUT = TREE / "build" / "benchmarks" / "operator"


def main() -> int:
    """Command line; everything is built outside of the sandbox, measured inside."""
    arguments = _parser().parse_args()
    try:
        if sandbox.state() is None:
            for lifted in _peers(arguments):
                peer.build(lifted=lifted)
            return sandbox.run_inside("benchmarks.operator", sys.argv[1:])
        sandbox.furnish()
        return asyncio.run(_run(arguments))
    except (ClusterError, BuildError, peer.PeerError, RefusedError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/operator.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--jobs", type=int, default=1000, help="jobs of the burst (1000)")
    add("--pods", type=int, default=10, help="pods of a job (10)")
    add("--one-gang", type=int, metavar="PODS", help="one job of so many pods, no single jobs")
    add("--ours", action=argparse.BooleanOptionalAction, default=True, help="measure ours")
    add("--peer", action=argparse.BooleanOptionalAction, default=True, help="measure Kubeflow's")
    add(
        "--released",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Kubeflow's as released: 20 requests a second, 1 worker",
    )
    add(
        "--lifted",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Kubeflow's with 2000 requests a second and 8 workers",
    )
    add("--singles", type=int, default=30, help="single jobs (30)")
    add("--rest", type=int, default=60, help="seconds of rest, and of training (60)")
    add("--limit", type=int, default=600, help="seconds a burst may take (600)")
    add("--profile", action="store_true", help="py-spy (on the PATH) on ours, during the burst")
    return parser


def _peers(arguments: argparse.Namespace) -> list[bool]:
    """Kubeflow's variants to measure, as their `lifted`."""
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
    cluster = ControlPlane.up("bench", control_plane_only=True, tied=True)
    figures = {}
    try:
        cluster.kubectl(
            "create",
            "-f",
            "-",
            stdin=f'{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{NODE}"}}}}',
        )
        async with Api(cluster.kubeconfig) as api:
            for contender in contenders:
                measurement = Measurement(cluster, api, contender, arguments, OUT)
                figures[contender.name] = await measurement.run()
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
