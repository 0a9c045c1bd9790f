"""Tests that the operator reveals nothing to a hostile pod and uses little memory for it."""

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
    """A function that returns the bytes by which the peak of Python's memory exceeds its start."""
    tracemalloc.start(1)
    before = tracemalloc.get_traced_memory()[0]
    yield lambda: tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()


def target(address: str, uid: str = UID) -> Target:
    return Target(("space", "a"), uid, 1, worker(0, ip=address))


async def ask(address: str) -> Report | str | None:
    async with reports.open_session() as session:
        goal = target(address)
        try:
            return await reports.fetch(session, goal.pod, goal)
        except NoReportError as error:
            return str(error)


@pytest.mark.parametrize("name", WRONG)
async def test_an_invalid_response_is_refused_soon_with_little_memory(name, memory):
    async with Worker("127.255.97.1", WRONG[name]).serving() as pod:
        begin = time.monotonic()
        found = await ask(pod.address)
        assert time.monotonic() - begin < SECONDS + 0.5
        assert not isinstance(found, Report)
        assert memory() < 6 * MIB
        assert len(pod.heads) in (1, 2)  # twice if the connection was closed immediately


async def test_a_valid_report_is_read():
    async with Worker("127.255.97.1", hostile.of(honest(UID))).serving() as pod:
        found = await ask(pod.address)
        assert isinstance(found, Report)


async def test_a_request_contains_only_standard_headers():
    """Even after a pod has asked for more."""
    async with (
        Worker("127.255.97.250", hostile.of(honest(UID))).serving() as trap,
        reports.open_session() as session,
    ):
        for name in ("redirect", "permanent redirect", "asks for a password", "a cookie"):
            async with Worker("127.255.97.1", WRONG[name]).serving() as pod:
                for _ in range(2):
                    goal = target(pod.address)
                    with contextlib.suppress(NoReportError):
                        assert await reports.fetch(session, goal.pod, goal) is None
                for head in pod.heads:
                    line, *headers = head.decode().split("\r\n")
                    assert line == "GET /v1/report HTTP/1.1"
                    given = {h.partition(":")[0].lower() for h in headers if h}
                    assert given == {"host", "accept", "accept-encoding", "user-agent"}
        assert trap.heads == []


async def test_the_report_of_another_worker_does_not_replace_that_of_worker_0(monkeypatch):
    """Only worker 0 knows the run, and only its address is polled."""
    monkeypatch.setattr(reports, "SILENT_AFTER", 0.5)
    address = "127.255.97.1"
    received: list[Any] = []
    asked = Reports(0.1, lambda due: [target(address, UID)] if due(UID) else [], received.append)
    async with Worker(address, hostile.of(honest(UID, index=1))).serving():
        task = asyncio.create_task(asked.run())
        await asyncio.sleep(1.5)
        assert asked.silent(UID, 1)
        assert asked.newest(UID, 1) is None
        task.cancel()


def gangs(*addresses: str) -> list[Target]:
    return [target(address, f"uid-{number}") for number, address in enumerate(addresses)]


@pytest.mark.slow
async def test_honest_gangs_are_polled_despite_hostile_ones_and_the_log_stays_short(caplog):
    """More gangs are hostile than are polled at the same time, for several rounds."""
    caplog.set_level(logging.INFO)
    false = [
        hostile.endless(b"", b"", 0.05),
        hostile.of(honest("another-job")),
        hostile.ok(b"not JSON"),
        WRONG["redirect"],
    ]
    addresses = [f"127.255.97.{10 + number}" for number in range(48)]
    found = [*gangs("127.255.97.9"), *[target(a, f"bad-{a}") for a in addresses]]
    received: list[Any] = []
    asked = Reports(0.2, lambda due: [t for t in found if due(t.job_uid)], received.append)
    good = Worker("127.255.97.9", hostile.of(honest("uid-0")))
    bad = [Worker(a, false[n % len(false)]) for n, a in enumerate(addresses)]
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
    assert len(lines) == 24  # one for each gang that sent an invalid response
