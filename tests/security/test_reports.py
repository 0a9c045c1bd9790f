"""The operator asks a pod that is hostile: nothing is given away, and nothing grows."""

import asyncio
import contextlib
import logging
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from finetune_api.run import Report
from finetune_operator import reports
from finetune_operator.reports import NoReportError, Reports, Target
from tests.operator.worlds import worker
from tests.security import hostile
from tests.security.hostile import MIB, Worker, honest

UID = "11111111-2222-3333-4444-555555555555"
WRONG = hostile.wrong(UID)
SECONDS = 0.7


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_TIMEOUT", aiohttp.ClientTimeout(total=SECONDS))


@pytest.fixture
def memory() -> Iterator[Any]:
    """Bytes by which Python's own memory was larger at its highest than before."""
    tracemalloc.start(1)
    before = tracemalloc.get_traced_memory()[0]
    yield lambda: tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()


def target(address: str, uid: str = UID) -> Target:
    return Target(("space", "a"), uid, 1, (worker(0, ip=address),))


async def ask(address: str) -> Report | str | None:
    async with reports.open_session() as session:
        goal = target(address)
        try:
            return await reports.fetch(session, goal.pods[0], goal)
        except NoReportError as error:
            return str(error)


@pytest.mark.parametrize("name", WRONG)
async def test_what_is_no_report_is_none_soon_and_costs_little(name, memory):
    async with Worker("127.255.97.1", WRONG[name]).serving() as pod:
        begin = time.monotonic()
        found = await ask(pod.address)
        assert time.monotonic() - begin < SECONDS + 0.5
        assert not isinstance(found, Report)
        assert memory() < 6 * MIB
        assert len(pod.heads) in (1, 2)  # once more where the connection was closed at once


async def test_an_honest_pod_is_heard():
    async with Worker("127.255.97.1", hostile.of(honest(UID))).serving() as pod:
        found = await ask(pod.address)
        assert isinstance(found, Report)


async def test_the_question_holds_nothing_but_the_question():
    """Nor after a pod has asked for more."""
    async with (
        Worker("127.255.97.250", hostile.of(honest(UID))).serving() as trap,
        reports.open_session() as session,
    ):
        for name in ("redirect", "permanent redirect", "asks for a password", "a cookie"):
            async with Worker("127.255.97.1", WRONG[name]).serving() as pod:
                for _ in range(2):
                    goal = target(pod.address)
                    with contextlib.suppress(NoReportError):
                        assert await reports.fetch(session, goal.pods[0], goal) is None
                for head in pod.heads:
                    line, *headers = head.decode().split("\r\n")
                    assert line == "GET /v1/report HTTP/1.1"
                    given = {h.partition(":")[0].lower() for h in headers if h}
                    assert given == {"host", "accept", "accept-encoding", "user-agent"}
        assert trap.heads == []


async def test_another_worker_is_not_heard_in_place_of_the_first(monkeypatch):
    """Only worker 0 knows how the run goes; where it has ended, the next one says that it lives."""
    monkeypatch.setattr(reports, "SILENT_AFTER", 0.5)
    addresses = ("127.255.97.1", "127.255.97.2")
    first, second = (worker(index, ip=address) for index, address in enumerate(addresses))
    pods = (first, second)
    told: list[Any] = []
    asked = Reports(
        0.1, lambda due: [Target(("space", "a"), UID, 1, pods)] if due(UID) else [], told.append
    )
    async with (
        Worker(addresses[0], hostile.ok(b"no JSON")).serving(),
        Worker(addresses[1], hostile.of(honest(UID, index=1))).serving(),
    ):
        task = asyncio.create_task(asked.run())
        await asyncio.sleep(1.5)
        assert asked.silent(UID)
        pods = (second,)
        await asyncio.sleep(1.5)
        assert not asked.silent(UID)
        assert asked.newest(UID, 1) is None
        task.cancel()


def gangs(*addresses: str) -> list[Target]:
    return [target(address, f"uid-{number}") for number, address in enumerate(addresses)]


@pytest.mark.slow
async def test_others_are_heard_meanwhile_and_the_log_stays_short(caplog):
    """More hostile gangs than are asked at once, for several rounds."""
    caplog.set_level(logging.INFO)
    lies = [
        hostile.endless(b"", b"", 0.05),
        hostile.of(honest("somebody-else")),
        hostile.ok(b"no JSON"),
        WRONG["redirect"],
    ]
    addresses = [f"127.255.97.{10 + number}" for number in range(48)]
    found = [*gangs("127.255.97.9"), *[target(a, f"bad-{a}") for a in addresses]]
    told: list[Any] = []
    asked = Reports(0.2, lambda due: [t for t in found if due(t.job_uid)], told.append)
    good = Worker("127.255.97.9", hostile.of(honest("uid-0")))
    bad = [Worker(a, lies[n % len(lies)]) for n, a in enumerate(addresses)]
    async with contextlib.AsyncExitStack() as pods:
        for pod in (good, *bad):
            await pods.enter_async_context(pod.serving())
        task = asyncio.create_task(asked.run())
        await asyncio.sleep(6 * SECONDS)
        assert not task.done()
        task.cancel()
    assert len(good.heads) >= 3
    assert asked.newest("uid-0", 1)
    assert [asked.newest(t.job_uid, 1) for t in found[1:]] == [None] * 48
    lines = [record for record in caplog.records if record.name.startswith("finetune")]
    assert len(lines) == 24  # one for each of those who said something else
