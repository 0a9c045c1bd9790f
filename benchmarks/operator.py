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
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.operators import observe, peer, sandbox
from benchmarks.operators.api import Api, RefusedError
from benchmarks.operators.contenders import Contender, Kubeflow, Ours, stop
from benchmarks.operators.kubelet import NODE
from benchmarks.operators.observe import Audit, Request
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from finetune_api.names import REPORT_PORT
from finetune_local.build import BuildError
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster, ClusterError, die_with_parent

OUT = TREE / "build" / "benchmarks" / "operator"
_APPLIERS = 16
_STEP_SECONDS = 10
_EVERY = 2.0  # s between single jobs
_NODE_CONTROLLERS = ("node-lifecycle", "taint-eviction", "pod-garbage-collector")
_console = Console(highlight=False, stderr=True, soft_wrap=True)


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


class ControlPlane(Cluster):
    """Without scheduler and what needs real nodes; with an audit log of those who are measured."""

    audit_policy: Any = None

    def _prepare(self, binary: Path, devices: int, nodes: int, taken: list[Any]) -> None:
        super()._prepare(binary, devices, nodes, taken)
        (self.directory / "audit.json").write_text(json.dumps(self.audit_policy))
        path = self.directory / "components.json"
        components = [c for c in json.loads(path.read_text()) if c["name"] != "kube-scheduler"]
        for component in components:
            if component["name"] == "kube-apiserver":
                component["command"] += [
                    f"--audit-policy-file={self.directory}/audit.json",
                    f"--audit-log-path={self.directory}/audit.log",
                    "--delete-collection-workers=8",
                ]
            if component["name"] == "kube-controller-manager":
                off = "".join(f",-{name}-controller" for name in _NODE_CONTROLLERS)
                component["command"] = [
                    word + off if word.startswith("--controllers=") else word
                    for word in component["command"]
                ]
        path.write_text(json.dumps(components))


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
    _console.print("control plane: starting")
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
                measurement = Measurement(cluster, api, contender, arguments)
                figures[contender.name] = await measurement.run()
                await _clean(api, contender)
    finally:
        for log in (cluster.directory / "logs").iterdir():
            shutil.copy(log, OUT)
        cluster.down()
    (OUT / "figures.json").write_text(json.dumps(figures, indent=1))
    _print(figures, arguments)
    return 0


@dataclass
class Measurement:
    """One operator, from its start to its end."""

    cluster: Cluster
    api: Api
    contender: Contender
    arguments: argparse.Namespace
    rows: dict[str, str] = field(default_factory=dict)
    steady: dict[str, float] = field(default_factory=dict)  # job -> s since the epoch

    async def run(self) -> dict[str, str]:
        """The rows of its column."""
        contender, arguments = self.contender, self.arguments
        slug = re.sub(r"\W+", "-", contender.name)
        self.audit = Audit(self.cluster.directory / "audit.log")
        self.ends = OUT / f"{slug}-prepare-ends.log"
        contender.install(self.cluster)
        with _kubelet(self.cluster, self.ends, OUT / f"{slug}-kubelet.log") as kubelet:
            self.others = observe.components() | {
                "kubelet": kubelet.pid,
                "the benchmark": os.getpid(),
            }
            process = contender.start(self.cluster, OUT / f"{slug}.log")
            self.pid = process.pid
            watch = asyncio.create_task(self._watch())
            try:
                await asyncio.sleep(3)
                self._row("start: CPU s", f"{observe.cpu_seconds(self.pid):.2f}")
                self._row("start: RSS MiB", f"{observe.memory_mib(self.pid):.0f}")
                if await self._burst() and process.poll() is None:
                    await self._rest()
                    if isinstance(contender, Ours) and arguments.rest:
                        await self._training()
                    if arguments.singles:
                        await self._singles()
                self._row("peak RSS MiB", f"{observe.memory_mib(self.pid, 'VmHWM'):.0f}")
            finally:
                watch.cancel()
                stop(process)
        return self.rows

    def _row(self, name: str, value: str) -> None:
        self.rows[name] = value
        _console.print(f"  {self.contender.name}: {name}: {value}")

    async def _watch(self) -> None:
        """Notes when a job's status first tells that all of its pods run."""
        path = f"{self.contender.collection}/namespaces/{self.contender.namespace}"
        async for event in self.api.watch(f"{path}/{self.contender.plural}", whole=True):
            item = event["object"]
            status, name = item.get("status", {}), item["metadata"]["name"]
            if name not in self.steady and self.contender.steady(status, self.arguments.pods):
                self.steady[name] = time.time()

    async def _apply(self, number: int) -> None:
        item = self.contender.job(f"j{number:05d}", self.arguments.pods)
        path = f"{self.contender.collection}/namespaces/{self.contender.namespace}"
        await self.api.send("POST", f"{path}/{self.contender.plural}", item)

    async def _burst(self) -> bool:
        """All jobs at once; whether all became steady within the limit."""
        jobs, started = self.arguments.jobs, time.time()
        before = observe.cpu_seconds(self.pid)
        others = {name: observe.cpu_seconds(pid) for name, pid in self.others.items()}
        busy = observe.machine_seconds()
        profile = _profile(self.pid) if self.arguments.profile else None
        slots = asyncio.Semaphore(_APPLIERS)

        async def one(number: int) -> None:
            async with slots:
                await self._apply(number)

        apply = asyncio.gather(*(one(number) for number in range(jobs)))
        await self._wait_steady(jobs, started + self.arguments.limit)
        await apply
        reached, now = len(self.steady), time.time()
        seconds = max(self.steady.values(), default=now) - started
        if profile:
            profile.send_signal(2)
            profile.wait(60)
        cpu = observe.cpu_seconds(self.pid) - before
        if reached == jobs:
            self._row("burst: s until all run", f"{seconds:.1f}")
        else:
            self._row("burst: s until all run", f"{reached} of {jobs} in {now - started:.0f} s")
        self._row("burst: CPU s", f"{cpu:.1f}")
        rest = observe.machine_seconds() - busy - cpu
        for name, pid in self.others.items():
            used = observe.cpu_seconds(pid) - others[name]
            rest -= used
            self._row(f"burst: CPU s of {name}", f"{used:.1f}")
        self._row("burst: CPU s of all else on the machine", f"{rest:.1f}")
        mine = self._mine(started)
        self._row("burst: writes per job", f"{sum(r.writes for r in mine) / jobs:.1f}")
        _console.print("   ", observe.by_kind(mine, jobs))
        self._row("burst: other requests per job", f"{sum(not r.writes for r in mine) / jobs:.1f}")
        errors = [r for r in mine if r.code >= 400 and r.writes]
        self._row("burst: refused writes", f"{len(errors)}")
        self._latencies("burst", {f"j{n:05d}" for n in range(jobs)})
        self._row("burst: RSS MiB", f"{observe.memory_mib(self.pid):.0f}")
        return reached == jobs

    async def _wait_steady(self, jobs: int, deadline: float) -> None:
        with _progress() as progress:
            task = progress.add_task(f"{self.contender.name}: jobs that run", total=jobs)
            shown = time.time()
            while len(self.steady) < jobs and time.time() < deadline:
                await asyncio.sleep(0.1)
                progress.update(task, completed=len(self.steady))
                if not _console.is_terminal and time.time() - shown > 15:
                    shown = time.time()
                    _console.print(f"  {len(self.steady)} of {jobs} jobs run")
            progress.update(task, completed=len(self.steady))

    def _mine(self, since: float) -> list[Request]:
        user = self.contender.user
        return [r for r in self.audit.read() if r.user == user and r.answered >= since]

    def _latencies(self, phase: str, jobs: set[str]) -> None:
        found = observe.creations(self.audit.read(), self.contender.user, self.contender.plural)
        complete = {
            name: job
            for name, job in found.items()
            if name in jobs and len(job.pods) >= self.arguments.pods and job.applied
        }
        if not complete:
            return
        ends = dict(reversed(line.split()) for line in self.ends.read_text().splitlines())
        spans = {
            "apply -> all pods created": [max(j.pods) - j.applied for j in complete.values()],
            "apply -> prepare pod created": [
                j.prepare - j.applied for j in complete.values() if j.prepare
            ],
            "prepare pod ended -> all pods created": [
                max(job.pods) - float(ends[f"{name}-prepare"])
                for name, job in complete.items()
                if f"{name}-prepare" in ends
            ],
            "apply -> status says all run": [
                self.steady[name] - job.applied
                for name, job in complete.items()
                if name in self.steady
            ],
        }
        for name, values in spans.items():
            if values:
                shown = [f"{observe.percentile(values, share):.3f}" for share in (0.5, 0.99)]
                self._row(f"{phase}: {name}, p50 / p99 s", " / ".join(shown))

    async def _rest(self) -> None:
        """After the last writes have ebbed, for a while."""
        for _ in range(30):
            await asyncio.sleep(1)
            if not any(r.writes for r in self._mine(time.time() - 5)):
                break
        await self._window("rest", self.arguments.rest)

    async def _training(self) -> None:
        await self._steps(_STEP_SECONDS)
        await asyncio.sleep(_STEP_SECONDS)
        await self._window(f"training, a step every {_STEP_SECONDS} s", self.arguments.rest)
        await self._steps(0)
        await asyncio.sleep(_STEP_SECONDS)

    async def _steps(self, seconds: int) -> None:
        await self.api.post(f"http://127.0.0.1:{REPORT_PORT}/train?step-seconds={seconds}")

    async def _window(self, phase: str, seconds: int) -> None:
        started, before = time.time(), observe.cpu_seconds(self.pid)
        with _progress() as progress:
            task = progress.add_task(f"{self.contender.name}: {phase}", total=seconds)
            while (passed := time.time() - started) < seconds:
                await asyncio.sleep(0.5)
                progress.update(task, completed=int(passed))
        mine = self._mine(started)
        writes = [r for r in mine if r.writes]
        self._row(f"{phase}: writes in {seconds} s", str(len(writes)))
        _console.print("   ", observe.by_kind(mine, 1))
        cpu = observe.cpu_seconds(self.pid) - before
        self._row(f"{phase}: CPU s in {seconds} s", f"{cpu:.2f}")
        self._row(f"{phase}: RSS MiB", f"{observe.memory_mib(self.pid):.0f}")

    async def _singles(self) -> None:
        """Jobs that meet an operator that is not busy."""
        first, count = self.arguments.jobs, self.arguments.singles
        before = observe.cpu_seconds(self.pid)
        with _progress() as progress:
            task = progress.add_task(f"{self.contender.name}: single jobs", total=count)
            for number in range(first, first + count):
                await self._apply(number)
                await asyncio.sleep(_EVERY)
                progress.update(task, advance=1)
        await self._wait_steady(first + count, time.time() + 30)
        cpu = observe.cpu_seconds(self.pid) - before
        self._row(f"single: CPU s for {count} jobs", f"{cpu:.2f}")
        self._latencies("single", {f"j{n:05d}" for n in range(first, first + count)})


@contextmanager
def _kubelet(cluster: Cluster, ends: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The scripted kubelet's process."""
    command = [sys.executable, "-m", "benchmarks.operators.kubelet"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, str(cluster.kubeconfig), str(ends)],
            cwd=TREE,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _profile(pid: int) -> subprocess.Popen[bytes]:
    program = shutil.which("py-spy")
    if program is None:
        raise ClusterError("--profile needs py-spy on the PATH: pip install py-spy")
    output = ["-o", str(OUT / "profile.txt"), "--gil", "-f", "raw", "-r", "200"]
    return subprocess.Popen([program, "record", "-p", str(pid), *output])


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=_console, transient=True, disable=not _console.is_terminal)


async def _clean(api: Api, contender: Contender) -> None:
    """Pods first: the garbage collector would take them one by one."""
    _console.print(f"{contender.name}: removing its objects")
    namespace = f"namespaces/{contender.namespace}"
    now = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
    jobs = f"{contender.collection}/{namespace}/{contender.plural}"
    for path in (f"/api/v1/{namespace}/pods", f"/api/v1/{namespace}/services", jobs):
        await api.send("DELETE", path, now)
        deadline = time.monotonic() + 120
        while (await api.get(f"{path}?limit=1"))["items"]:
            if time.monotonic() > deadline:
                raise ClusterError(f"{path}: not gone after 120 s")
            await asyncio.sleep(0.5)
    await api.send("DELETE", f"/api/v1/{namespace}/events", now)


def _print(figures: dict[str, dict[str, str]], arguments: argparse.Namespace) -> None:
    """The table, in Markdown."""
    rows = list(dict.fromkeys(row for column in figures.values() for row in column))
    size = f"{arguments.jobs:,} jobs x {arguments.pods:,} pods"
    print(f"\n{time.strftime('%Y-%m-%d')}, {_machine()}. {size}.")
    print(f"`python benchmarks/operator.py {' '.join(sys.argv[1:])}`\n")
    print("| | " + " | ".join(figures) + " |")
    print("|---|" + "---|" * len(figures))
    for row in rows:
        print(f"| {row} | " + " | ".join(c.get(row, "-") for c in figures.values()) + " |")


def _machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = next(
        (
            line.partition(":")[2].strip()
            for line in text.splitlines()
            if line.startswith("model name")
        ),
        "?",
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1])  # MemTotal, kB
    return (
        f"{os.cpu_count()} cores of {model}, {memory / 2**20:.0f} GiB, Linux {os.uname().release}"
    )


if __name__ == "__main__":
    sys.exit(main())
