"""Which reports trigger a reconcile, how often gangs are polled, and at which address."""

import asyncio

import pytest
from aiohttp import web

from finetune_api.names import REPORT_PATH
from finetune_api.progress import Progress
from finetune_api.run import Report
from finetune_local.ports import free_port
from finetune_operator import reports
from finetune_operator.plan.observe import Pod
from finetune_operator.reports import (
    SILENT_AFTER,
    Reports,
    Target,
    is_news,
    poll_interval,
    reported_by,
)
from tests.operator.worlds import at, ended, worker

BASE = Report(
    job_uid="u",
    attempt=1,
    worker_index=0,
    sequence=5,
    stage="LoadingModel",
    stage_since=at(0),
    activity=3,
    activity_age_seconds=2.0,
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"sequence": 9, "activity": 8, "activity_age_seconds": 4.0}, False),
        ({"activity_age_seconds": 6000.0}, False),
        ({"stage": "Training"}, True),
        ({"progress": Progress(step=1, total_steps=9)}, True),
    ],
    ids=[
        "no change",
        "activity",
        "no activity",
        "another stage",
        "a step",
    ],
)
def test_a_report_with_new_facts_is_news_and_one_with_new_ages_is_not(changes, expected):
    assert is_news(BASE, BASE.replace(**changes)) is expected


def test_the_first_report_is_news():
    assert is_news(None, BASE)


class Polling:
    """The reports of one gang, a clock that the test sets, and the notifications."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(reports.time, "monotonic", lambda: self.now)
        self.notified: list[object] = []
        self.pod: Pod | None = worker(0)
        self.attempt = 1
        self.reports = Reports(5.0, self._targets, self.notified.append)

    def _targets(self, due):
        return [self.target] if due("u") else []

    @property
    def target(self) -> Target:
        return Target(("default", "a"), "u", self.attempt, self.pod)

    def advance(self, seconds: float) -> int:
        """Move the clock and return how many gangs are polled."""
        self.now += seconds
        return len(list(self.reports._take_due(self.now)))


def test_a_gang_is_polled_once_per_interval(monkeypatch):
    polling = Polling(monkeypatch)
    assert [polling.advance(seconds) for seconds in (0, 1, 1, 6, 1)] == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("interval", "gangs", "seconds"),
    [(5, 1, 5), (5, 500, 5), (5, 800, 8), (5, 20_000, SILENT_AFTER / 3), (20, 20_000, 20)],
)
def test_many_gangs_are_polled_less_often(interval, gangs, seconds):
    assert poll_interval(interval, gangs) == seconds


def test_silence_and_its_end_are_notified_once(monkeypatch):
    polling = Polling(monkeypatch)
    polling.advance(0)
    polling.reports.take(polling.target, BASE)
    assert len(polling.notified) == 1
    for _ in range(3):
        polling.advance(SILENT_AFTER)
        polling.reports.miss(polling.target)
    assert len(polling.notified) == 2
    assert polling.reports.silent("u", polling.attempt)
    polling.reports.take(polling.target, BASE)  # no news, except that the gang is no longer silent
    assert len(polling.notified) == 3
    assert not polling.reports.silent("u", polling.attempt)
    polling.reports.take(polling.target, BASE)
    assert len(polling.notified) == 3


def test_a_new_gang_does_not_inherit_the_silence_of_the_previous_one(monkeypatch):
    polling = Polling(monkeypatch)
    polling.advance(0)
    polling.advance(2 * SILENT_AFTER)
    assert polling.reports.silent("u", 1)
    assert not polling.reports.silent("u", 2)
    polling.attempt = 2
    polling.advance(6)
    assert not polling.reports.silent("u", 2)


WORKERS = {
    "worker 0 runs": ([worker(0), worker(1)], "a-1-0"),
    "worker 0 has no address yet": ([worker(0, ip=None), worker(1)], None),
    "worker 0 has ended": ([ended(worker(0), 88, 30), worker(1)], None),
    "the node of worker 0 does not answer": ([worker(0, silent_since=at(30)), worker(1)], None),
    "the pod of worker 0 is gone": ([worker(0).vanished(), worker(1)], None),
}


@pytest.mark.parametrize(("pods", "expected"), WORKERS.values(), ids=WORKERS)
def test_only_worker_0_is_polled_and_only_while_its_node_answers(pods, expected):
    found = reported_by(pods, 1)
    assert (found.name if found else None) == expected


def test_a_gang_that_ended_is_forgotten_but_its_last_report_is_kept(monkeypatch):
    polling = Polling(monkeypatch)
    polling.advance(0)
    polling.reports.take(polling.target, BASE)
    polling.pod = None
    assert polling.advance(60) == 0
    assert not polling.reports.silent("u", polling.attempt)
    assert polling.reports.newest("u", 1) == BASE
    polling.reports.drop("u")
    assert polling.reports.newest("u", 1) is None


async def test_pods_that_do_not_answer_delay_only_the_reports_of_their_namespace(monkeypatch):
    async def fetch(_, __, target: Target) -> Report | None:
        if target.key[0] == "slow":
            await asyncio.sleep(60)
        return BASE.replace(job_uid=target.job_uid)

    monkeypatch.setattr(reports, "fetch", fetch)
    targets = [Target(("slow", f"j{n}"), f"s{n}", 1, worker(0)) for n in range(60)]
    targets.append(Target(("other", "a"), "u", 1, worker(0)))
    notified: list[object] = []
    polling = Reports(0.1, lambda due: (t for t in targets if due(t.job_uid)), notified.append)
    task = asyncio.create_task(polling.run())
    await asyncio.sleep(0.1)
    first = polling._gangs["u"].last_report
    await asyncio.sleep(1.5)
    assert polling.newest("u", 1)
    assert polling._gangs["u"].last_report > first, "polled again meanwhile"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_the_report_is_fetched_from_an_address_of_either_family(address, monkeypatch):
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=BASE.to_json(), content_type="application/json")

    port = free_port()
    monkeypatch.setattr(reports, "REPORT_PORT", port)
    app = web.Application()
    app.add_routes([web.get(REPORT_PATH, answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, address, port).start()
    pod = worker(0, ip=address)
    async with reports.open_session() as session:
        found = await reports.fetch(session, pod, Target(("default", "a"), "u", 1, (pod,)))
    await runner.cleanup()
    assert found == BASE
