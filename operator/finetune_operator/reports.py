"""Pulls reports from running gangs. What comes out of a pod is untrusted."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import aiohttp

from finetune_api.names import REPORT_PATH, REPORT_PORT
from finetune_api.run import Report
from finetune_operator.plan.observe import Pod
from finetune_operator.queue import Key

_log = logging.getLogger("finetune.reports")
_MOST_BYTES = 256 * 1024
_PARALLEL = 32
_TIMEOUT = aiohttp.ClientTimeout(total=2)
_MOST_A_SECOND = 100  # questions to all gangs together
SILENT_AFTER = 30.0  # s


@dataclass(frozen=True)
class Target:
    """A gang to ask."""

    key: Key
    job_uid: str
    attempt: int
    pods: tuple[Pod, ...]  # running ones with an address, by index


Targets = Callable[[Callable[[str], bool]], Iterable[Target]]
"""All jobs with an attempt for which the function says true; without pods when none runs."""


@dataclass
class _Gang:
    """A running gang; times are of the monotonic clock, in seconds."""

    attempt: int
    heard: float
    due: float = 0.0
    said_silent: bool = False
    said_wrong: bool = False  # in the log, which a pod that goes on must not fill


@dataclass
class Reports:
    """Newest report of every running gang."""

    interval: float
    targets: Targets
    notify: Callable[[Key], None]
    _newest: dict[str, Report] = field(default_factory=dict)
    _gangs: dict[str, _Gang] = field(default_factory=dict)

    def newest(self, job_uid: str, attempt: int | None) -> Report | None:
        """Last report of worker 0 of that attempt."""
        report = self._newest.get(job_uid)
        return report if report and report.attempt == attempt else None

    def silent(self, job_uid: str) -> bool:
        """Whether a running gang could not be asked for a while."""
        gang = self._gangs.get(job_uid)
        return gang is not None and time.monotonic() - gang.heard > SILENT_AFTER

    async def run(self) -> None:
        """Ask for ever."""
        slots = asyncio.Semaphore(_PARALLEL)
        async with open_session() as session:
            while True:
                due = list(self._take_due(time.monotonic()))
                await asyncio.gather(*(self._ask(session, slots, target) for target in due))
                await asyncio.sleep(min(1.0, self.interval / 4))

    def _take_due(self, now: float) -> Iterator[Target]:
        """Gangs whose turn it is; their next turn is set."""

        def is_due(uid: str) -> bool:
            return uid not in self._gangs or self._gangs[uid].due <= now

        for target in self.targets(is_due):
            gang = self._gangs.get(target.job_uid)
            if not target.pods:
                # The report itself stays until the attempt's end was accounted with it.
                self._gangs.pop(target.job_uid, None)
                continue
            if gang is None or gang.attempt != target.attempt:
                gang = self._gangs[target.job_uid] = _Gang(target.attempt, heard=now)
            gang.due = now + pause(self.interval, len(self._gangs)) * random.uniform(0.9, 1.1)
            yield target

    async def _ask(
        self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, target: Target
    ) -> None:
        async with slots:
            # The first that runs: worker 0, unless it has ended. Only it knows of the run.
            pod = target.pods[0]
            report: Report | None = None
            try:
                report = await fetch(session, pod, target)
            except NoReportError as error:
                self._complain(target, pod, error)
        if report is not None:
            self.take(target, report)
        else:
            self.miss(target)

    def _complain(self, target: Target, pod: Pod, error: "NoReportError") -> None:
        gang = self._gangs.get(target.job_uid)
        if gang and not gang.said_wrong:
            gang.said_wrong = True
            _log.warning("%s/%s: %s", target.key[0], pod.name, error)

    def take(self, target: Target, report: Report) -> None:
        """A report has come."""
        gang = self._gangs.get(target.job_uid)
        if gang is None or gang.attempt != target.attempt:
            return  # it has ended meanwhile
        known, back = self._newest.get(target.job_uid), gang.said_silent
        gang.heard, gang.said_silent = time.monotonic(), False
        if report.worker_index == 0:
            self._newest[target.job_uid] = report
        if back or (report.worker_index == 0 and tells_more(known, report)):
            self.notify(target.key)

    def miss(self, target: Target) -> None:
        """None has come; that is told once, when it has lasted."""
        gang = self._gangs.get(target.job_uid)
        if gang and not gang.said_silent and self.silent(target.job_uid):
            gang.said_silent = True
            self.notify(target.key)

    def drop(self, job_uid: str) -> None:
        """The job is finished or gone."""
        self._newest.pop(job_uid, None)
        self._gangs.pop(job_uid, None)


def pause(interval: float, gangs: int) -> float:
    """Seconds between two questions to one of so many gangs.

    Many are asked less often, but never so seldom that one lost answer makes a gang seem silent.
    """
    return max(interval, min(gangs / _MOST_A_SECOND, SILENT_AFTER / 3))


def tells_more(known: Report | None, report: Report) -> bool:
    """Whether a job must be looked at for it. Ages and counters grow in every report.

    An activity that stands still is awaited by the clock (plan/deadlines.py), not by reports.
    """
    if known is None:
        return True
    same = {name: getattr(known, name) for name in ("sequence", "activity", "ranks")}
    ages = {"activity_age_seconds": known.activity_age_seconds}
    return report.model_copy(update=same | ages) != known


class NoReportError(Exception):
    """A pod answered, and not with the report that it should give."""


def open_session() -> aiohttp.ClientSession:
    """For pods: nothing of ours is sent, kept or unpacked."""
    return aiohttp.ClientSession(
        timeout=_TIMEOUT,
        cookie_jar=aiohttp.DummyCookieJar(),
        # What was not asked for is no JSON then, however large it would become.
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
    )


async def fetch(session: aiohttp.ClientSession, pod: Pod, target: Target) -> Report | None:
    """One pod's report, None when it cannot be had; NoReportError for what is not one."""
    url = f"http://{pod.ip}:{REPORT_PORT}{REPORT_PATH}"
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            body = await response.content.read(_MOST_BYTES + 1)
            while len(body) <= _MOST_BYTES and not response.content.at_eof():
                body += await response.content.read(_MOST_BYTES + 1 - len(body))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    if len(body) > _MOST_BYTES:
        raise NoReportError(f"its report is larger than {_MOST_BYTES} bytes")
    try:
        report = Report.model_validate_json(body)
    except ValueError:  # not quoted: it may be anything
        raise NoReportError("what it answers is no report") from None
    asked = (target.job_uid, target.attempt, pod.index)
    if (report.job_uid, report.attempt, report.worker_index) != asked:
        raise NoReportError("it answered for another pod")
    return report
