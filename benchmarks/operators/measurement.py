"""The measurement of one operator, from its start to its end."""

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from benchmarks.operators import controlplane, finished, observe
from benchmarks.operators.contenders import PORT, Contender, Ours, stop
from benchmarks.operators.observe import Audit, Request
from benchmarks.operators.show import console, progress

from finetune_api.names import REPORT_PORT
from finetune_client.api import Api
from finetune_local.cluster import Cluster, ClusterError

_APPLIERS = 16
_STEP_SECONDS = 10
_EVERY = 2.0  # s between single jobs


@dataclass
class Measurement:
    """The measurement of one operator."""

    cluster: Cluster
    api: Api
    contender: Contender
    arguments: argparse.Namespace
    out: Path  # logs and figures
    rows: dict[str, str] = field(default_factory=dict)
    steady: dict[str, float] = field(default_factory=dict)  # job -> s since the epoch

    async def run(self) -> dict[str, str]:
        """Measure, and return the rows of the operator's column in the table."""
        contender, arguments = self.contender, self.arguments
        slug = re.sub(r"\W+", "-", contender.name)
        self.audit = Audit(self.cluster.directory / "audit.log")
        self.ends = self.out / f"{slug}-prepare-ends.log"
        contender.install(self.cluster)
        if isinstance(contender, Ours) and arguments.finished:
            await finished.create(self.api, contender, arguments.finished)
        with controlplane.kubelet(
            self.cluster, self.ends, self.out / f"{slug}-kubelet.log"
        ) as kubelet:
            self.others = observe.components() | {
                "kubelet": kubelet.pid,
                "the benchmark": os.getpid(),
            }
            begin = time.time()
            process = contender.start(self.cluster, self.out / f"{slug}.log")
            self.pid = process.pid
            self._row("start: s until ready", f"{time.time() - begin:.1f}")
            watch = asyncio.create_task(self._watch())
            try:
                await asyncio.sleep(3)
                if isinstance(contender, Ours) and arguments.finished:
                    await finished.processed(PORT, arguments.finished)
                    self._row("start: s until all are processed", f"{time.time() - begin:.1f}")
                self._row("start: CPU s", f"{observe.cpu_seconds(self.pid):.2f}")
                self._row("start: RSS MiB", f"{observe.memory_mib(self.pid):.0f}")
                self._row("start: peak RSS MiB", f"{observe.memory_mib(self.pid, 'VmHWM'):.0f}")
                if await self._burst() and process.poll() is None:
                    await self._rest()
                    if isinstance(contender, Ours) and arguments.rest:
                        await self._training()
                    if arguments.singles:
                        await self._singles()
                    if isinstance(contender, Ours):
                        await self._scrape()
                self._row("peak RSS MiB", f"{observe.memory_mib(self.pid, 'VmHWM'):.0f}")
            finally:
                watch.cancel()
                stop(process)
        return self.rows

    def _row(self, name: str, value: str) -> None:
        self.rows[name] = value
        console.print(f"  {self.contender.name}: {name}: {value}")

    async def _watch(self) -> None:
        """Record when a job's status first shows that all of its pods run."""
        path = f"{self.contender.collection}/namespaces/{self.contender.namespace}"
        async for event in observe.everything(self.api, f"{path}/{self.contender.plural}"):
            item = event["object"]
            status, name = item.get("status", {}), item["metadata"]["name"]
            if name not in self.steady and self.contender.steady(status, self.arguments.pods):
                self.steady[name] = time.time()

    async def _apply(self, number: int) -> None:
        item = self.contender.job(f"j{number:05d}", self.arguments.pods)
        path = f"{self.contender.collection}/namespaces/{self.contender.namespace}"
        while True:
            try:
                await self.api.create(f"{path}/{self.contender.plural}", item)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(1)  # A busy machine accepts the connection late.
            else:
                return

    async def _burst(self) -> bool:
        """Apply all jobs at once; return whether all became steady within the limit."""
        jobs, started = self.arguments.jobs, time.time()
        before = observe.cpu_seconds(self.pid)
        others = {name: observe.cpu_seconds(pid) for name, pid in self.others.items()}
        busy = observe.machine_seconds()
        profile = _profile(self.pid, self.out) if self.arguments.profile else None
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
        if not mine:
            raise ClusterError(f"{self.audit.path} contains no request of {self.contender.user}")
        self._row("burst: writes per job", f"{sum(r.writes for r in mine) / jobs:.1f}")
        console.print("   ", observe.by_kind(mine, jobs))
        self._row("burst: other requests per job", f"{sum(not r.writes for r in mine) / jobs:.1f}")
        errors = [r for r in mine if r.code >= 400 and r.writes]
        self._row("burst: refused writes", f"{len(errors)}")
        self._latencies("burst", {f"j{n:05d}" for n in range(jobs)})
        self._row("burst: RSS MiB", f"{observe.memory_mib(self.pid):.0f}")
        return reached == jobs

    async def _wait_steady(self, jobs: int, deadline: float) -> None:
        with progress() as bar:
            task = bar.add_task(f"{self.contender.name}: jobs that run", total=jobs)
            shown = time.time()
            while len(self.steady) < jobs and time.time() < deadline:
                await asyncio.sleep(0.1)
                bar.update(task, completed=len(self.steady))
                if not console.is_terminal and time.time() - shown > 15:
                    shown = time.time()
                    console.print(f"  {len(self.steady)} of {jobs} jobs run")
            bar.update(task, completed=len(self.steady))

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
        """Wait until writes have ended, then measure for a while."""
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
        url = f"http://127.0.0.1:{REPORT_PORT}/train?step-seconds={seconds}"
        async with aiohttp.request("POST", url) as response:
            response.raise_for_status()

    async def _window(self, phase: str, seconds: int) -> None:
        started, before = time.time(), observe.cpu_seconds(self.pid)
        with progress() as bar:
            task = bar.add_task(f"{self.contender.name}: {phase}", total=seconds)
            while (passed := time.time() - started) < seconds:
                await asyncio.sleep(0.5)
                bar.update(task, completed=int(passed))
        mine = self._mine(started)
        writes = [r for r in mine if r.writes]
        self._row(f"{phase}: writes in {seconds} s", str(len(writes)))
        console.print("   ", observe.by_kind(mine, 1))
        cpu = observe.cpu_seconds(self.pid) - before
        self._row(f"{phase}: CPU s in {seconds} s", f"{cpu:.2f}")
        self._row(f"{phase}: RSS MiB", f"{observe.memory_mib(self.pid):.0f}")

    async def _scrape(self) -> None:
        seconds, size, lines = await finished.scrape(PORT)
        self._row("scrape: s, MB, lines", f"{seconds:.2f}, {size / 1e6:.2f}, {lines:,}")

    async def _singles(self) -> None:
        """Apply jobs one by one to an operator that is not busy."""
        first, count = self.arguments.jobs, self.arguments.singles
        before = observe.cpu_seconds(self.pid)
        with progress() as bar:
            task = bar.add_task(f"{self.contender.name}: single jobs", total=count)
            for number in range(first, first + count):
                await self._apply(number)
                await asyncio.sleep(_EVERY)
                bar.update(task, advance=1)
        await self._wait_steady(first + count, time.time() + 30)
        cpu = observe.cpu_seconds(self.pid) - before
        self._row(f"single: CPU s for {count} jobs", f"{cpu:.2f}")
        self._latencies("single", {f"j{n:05d}" for n in range(first, first + count)})


def _profile(pid: int, out: Path) -> subprocess.Popen[bytes]:
    program = shutil.which("py-spy")
    if program is None:
        raise ClusterError("--profile needs py-spy on the PATH: pip install py-spy")
    output = ["-o", str(out / "profile.txt"), "--gil", "-f", "raw", "-r", "200"]
    return subprocess.Popen([program, "record", "-p", str(pid), *output])
