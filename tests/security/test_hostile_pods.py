"""Runs the operator process with hostile pods, on the real API server.

Worker 0 of every gang responds with a false report and leaves a false result. One job is honest and
must succeed as if it were alone.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from finetune_api.base import Object
from finetune_local.cluster import Cluster, ClusterError
from tests.installed import Operator, install
from tests.operator import podstatus
from tests.operator.lives import Life, View
from tests.operator.worlds import OUTPUT, checkpoint, prepared, progressed
from tests.operator.worlds import result as make_result
from tests.security import hostile
from tests.security.hostile import HUGE, TEXTS, Worker, honest
from tests.security.test_restricted import viewed

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
TRAP = "127.255.95.250"
NAN, INFINITY = float("nan"), float("inf")


def saved(**changes: Any) -> Object:
    return checkpoint(5).to_dict() | changes


# Fields that worker 0 adds to the report of an honest one.
FALSE_REPORTS: dict[str, Object] = {
    "nan": {"progress": {"step": 5, "totalSteps": 10, "trainLoss": NAN}},
    "infinity": {"ledger": {"productiveSeconds": INFINITY}},
    "huge-ledger": {"ledger": {"productiveSeconds": 1e308, "redoneSeconds": 1e308}},
    "negative": {"progress": {"step": -5, "totalSteps": -1}, "activityAgeSeconds": -1e300},
    "beyond": {"progress": {"step": 10**9, "totalSteps": 10, "trainLoss": 1e300}},
    "huge": {"progress": {"step": HUGE, "totalSteps": HUGE, "tokensSeen": HUGE}},
    "time": {"stageSince": "0001-01-01T00:00:00+14:00"},
    "controls": {
        "progress": {"step": 5, "totalSteps": 10, "checkpointProblem": "".join(TEXTS[1:])},
        "checkpoints": [saved(location="pvc://w/" + "".join(TEXTS[1:]))],
    },
    "long": {"checkpoints": [saved(location="x" * 100_000)]},
    "many": {"checkpoints": [saved()] * 500},
}
FALSE_RESULTS: dict[str, str] = {
    "nan": '{"outcome": "Failed", "reason": "Crashed", "ledger": {"productiveSeconds": NaN}}',
    "huge": json.dumps({"outcome": "Failed", "reason": "x", "ledger": {"firstStep": HUGE}}),
    "controls": json.dumps({"outcome": "Failed", "reason": "X", "message": "".join(TEXTS[1:])}),
    "long": "\x1b[31m" + "x" * 4000,
    "time": json.dumps(
        {
            "outcome": "Failed",
            "reason": "X",
            "checkpoints": [saved(creationTime="0001-01-01T00:00:00+14:00")],
        }
    ),
}
PREPARED: dict[str, Object] = {
    "prepared-nothing": {"data": {**prepared().data.to_dict(), "rows": 0}},
    "prepared-negative": {"data": {**prepared().data.to_dict(), "rows": -7, "tokens": -1}},
    "prepared-huge": {"parameterCount": HUGE, "data": {**prepared().data.to_dict(), "rows": HUGE}},
    "prepared-long": {"preparedDigest": "x" * 2000},
}


@dataclass
class Gang(Life):
    """A job up to its running gang, whose worker 0 has a separate address."""

    address: str = ""
    result: str = field(default_factory=lambda: make_result(prepared=prepared()))

    async def begin(self) -> None:
        await self._begin()
        name = f"{self.name}-prepare"
        await self._until(name, lambda: name in self.pods)
        await self._run(name)
        await self._end(name, 0, self.result)

    async def run(self) -> None:
        workers = [f"{self.name}-1-{index}" for index in (0, 1)]
        await self._until("gang", lambda: set(workers) <= set(self.pods))
        for worker in workers:
            await self._run(worker)
        patch = {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        await self._write(workers[0], podstatus.running() | patch)
        await self._until("it runs", lambda: self.status.get("phase") == "Running")

    @property
    def uid(self) -> str:
        found: str = self.view.objects["jobs", self.namespace][self.name]["metadata"]["uid"]
        return found

    async def end(self, code: int, message: str) -> None:
        for index in (1, 0):
            await self._end(f"{self.name}-1-{index}", code, message)

    async def until(self, what: str, check: Callable[[], Any]) -> Any:
        return await self._until(what, check)


@pytest.fixture
def operator(control_plane: Cluster, tmp_path):
    install(control_plane)
    running = Operator(control_plane, tmp_path / "operator.log")
    running.start()
    yield running
    running.kill()


def highest_memory(operator: Operator) -> float:
    """Return the peak memory of the operator in MiB."""
    assert operator._process is not None
    text = Path(f"/proc/{operator._process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) / 1024


async def foreign(view: View, victim: Gang) -> None:
    """Create pods in a foreign namespace with the labels of the victim's job."""
    space = "/api/v1/namespaces/hostile-labels"
    await view.kube.create("/api/v1/namespaces", {"metadata": {"name": "hostile-labels"}})
    other = Gang(view, "hostile-labels")
    await other._account()
    labels = {"job-uid": victim.uid, "job-name": victim.name, "role": "worker", "attempt": "1"}
    kinds = [{"worker-index": "0"}, {"worker-index": "x"}, {"attempt": "9" * 60}, {"attempt": "y"}]
    for number, kind in enumerate(kinds):
        given = {f"finetune.dev/{key}": value for key, value in (labels | kind).items()}
        container = {"name": "trainer", "image": "x"}
        pod = {
            "metadata": {"name": f"p{number}", "labels": given},
            "spec": {"containers": [container]},
        }
        await view.kube.create(f"{space}/pods", pod)
    status = podstatus.ended(65, make_result("Failed", reason="BadData"))
    await view.kube.patch(f"{space}/pods/p0/status", {"status": status})
    off = {"metadata": {"labels": {"finetune.dev/job-uid": None}}}
    await view.kube.patch(f"{space}/pods/p1", off)


BROKEN = {"spec": {"containers": [{"name": "trainer", "env": "A=b", "volumeMounts": [1]}]}}


async def story(view: View) -> dict[str, Gang]:
    answers = {**hostile.wrong("u", TRAP), **FALSE_REPORTS}
    names = [f"hostile-{number}" for number in range(len(answers))]
    jobs = {
        key: Gang(view, name, address=f"127.255.95.{number + 10}")
        for number, (key, name) in enumerate(zip(answers, names, strict=True))
    }
    good = Gang(view, "hostile-honest", address="127.255.95.9")
    prepares = {
        key: Gang(view, f"hostile-{key}", result=_prepared(false))
        for key, false in PREPARED.items()
    }
    template = {"replicas": 2, "devicesPerWorker": 4, "template": BROKEN}
    broken = Gang(view, "hostile-template", spec={"workers": template})
    slots = asyncio.Semaphore(12)

    async def slowly(step: Any) -> None:
        async with slots:
            await step

    gangs = [good, *jobs.values()]
    begin = [broken._begin(), *(gang.begin() for gang in [*gangs, *prepares.values()])]
    await asyncio.gather(*(slowly(step) for step in begin))
    await foreign(view, good)
    async with contextlib.AsyncExitStack() as servers:
        trap = await servers.enter_async_context(Worker(TRAP, b"").serving())
        served = Worker(good.address, _honest(good, 1))
        await servers.enter_async_context(served.serving())
        for key, gang in jobs.items():
            wrong = hostile.wrong(gang.uid, TRAP)
            answer = wrong.get(key) or hostile.of(honest(gang.uid, **FALSE_REPORTS.get(key, {})))
            await servers.enter_async_context(Worker(gang.address, answer).serving())
        await asyncio.gather(*(slowly(gang.run()) for gang in gangs))
        for step in (2, 3, 4):  # the honest job progresses, and its status shows it
            served.answer = _honest(good, step)
            await good.until(f"step {step}", lambda: _step(good) == step)  # noqa: B023
        await broken.until("its reason", lambda: broken.status.get("reason") == "InvalidTemplate")
        assert trap.heads == []
    for key, gang in jobs.items():
        await gang.end(1 if key in FALSE_RESULTS else 65, FALSE_RESULTS.get(key, "\x1b[2J" + key))
    message = make_result(output=OUTPUT, **progressed(100, saved=100))
    await good.end(0, message)
    await good.until("Succeeded", lambda: good.status.get("phase") == "Succeeded")
    for gang in jobs.values():
        await gang.until("it ended", lambda: gang.status["attempts"][0].get("outcome"))  # noqa: B023
    for gang in prepares.values():
        await gang.until("NoResult", lambda: gang.status.get("reason") == "NoResult")  # noqa: B023
    return {"honest": good, "template": broken, **jobs, **prepares}


def _prepared(false: Object) -> str:
    return json.dumps(
        {"outcome": "Succeeded", "reason": "Completed", "prepared": prepared().to_dict() | false}
    )


def _honest(gang: Gang, step: int) -> bytes:
    return hostile.of(honest(gang.uid, progress={"step": step, "totalSteps": 100}))


def _step(gang: Gang) -> int:
    return int(gang.status.get("progress", {}).get("step", 0))


@pytest.mark.timeout(400)
def test_the_operator_continues_despite_hostile_pods(control_plane, operator):
    jobs = asyncio.run(viewed(control_plane, story))
    assert operator.running
    assert highest_memory(operator) < 250
    good = jobs["honest"].end_state()
    assert (good["phase"], good["attempt"], good["estimated"]) == ("Succeeded", 1, False)
    for key, gang in jobs.items():
        text = json.dumps(gang.status, allow_nan=False)
        assert len(text) < 32 * 1024, key
        assert not re.search(r"\\u00(0[0-8bcdef]|1.|7f|9b)|\\u202e", text), key
    log = operator.log
    assert "Traceback" not in log
    assert len(log) < 100 * 1024 + 2000 * len(jobs)
    for line in log.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) [\w.]+: ", line)
        assert len(line) < 5000
    assert operator.stop() == 0
    for gang in jobs.values():
        with contextlib.suppress(ClusterError):
            control_plane.kubectl("delete", "namespace", gang.namespace, "--wait=false")
