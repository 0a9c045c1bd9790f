"""Polling of reports from running gangs. Everything that a pod returns is untrusted."""

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from finetune_api.names import REPORT_PATH, REPORT_PORT
from finetune_api.run import Report
from finetune_operator.plan.observe import Pod
from finetune_operator.queue import Key

_log = logging.getLogger("finetune.reports")
_MAX_BYTES = 256 * 1024
_PARALLEL = 16  # requests at a time to the gangs of one namespace
_TIMEOUT = aiohttp.ClientTimeout(total=2)
_MAX_PER_SECOND = 100  # requests to all gangs together
SILENT_AFTER = 30.0  # s without a report


@dataclass(frozen=True)
class Target:
    """A gang to poll."""

    key: Key
    job_uid: str
    attempt: int
    pod: Pod | None  # worker 0, if a report can be expected of it


Targets = Callable[[Callable[[str], bool]], Iterable[Target]]
"""Returns all jobs with an attempt that are due."""


def reported_by(pods: Iterable[Pod], attempt: int) -> Pod | None:
    """Return worker 0 of an attempt if it runs on a node that answers, else None.

    Only worker 0 knows the run. What another worker answers, or a pod on a dead node does not
    answer, says nothing about the report.
    """
    return next((pod for pod in pods if _may_report(pod, attempt)), None)


def _may_report(pod: Pod, attempt: int) -> bool:
    if (pod.role, pod.attempt, pod.index) != ("worker", attempt, 0):
        return False
    return pod.running and pod.ip is not None and pod.silent_since is None


@dataclass
class _Gang:
    """A gang whose worker 0 runs; times are of the monotonic clock, in seconds."""

    attempt: int
    last_report: float
    due: float = 0.0
    marked_silent: bool = False
    invalid_logged: bool = False  # logged once, so that a pod cannot fill the log


@dataclass
class Reports:
    """The newest report of every running gang."""

    interval: float
    targets: Targets
    notify: Callable[[Key], None]
    _newest: dict[str, Report] = field(default_factory=dict)
    _gangs: dict[str, _Gang] = field(default_factory=dict)
    _polled: set[str] = field(default_factory=set)  # jobs with a request that waits or is sent
    _slots: defaultdict[str, asyncio.Semaphore] = field(
        default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(_PARALLEL))
    )  # by namespace

    def newest(self, job_uid: str, attempt: int | None) -> Report | None:
        """Return the last report of worker 0 of that attempt."""
        report = self._newest.get(job_uid)
        return report if report and report.attempt == attempt else None

    def silent(self, job_uid: str, attempt: int | None) -> bool:
        """Return whether worker 0 of that attempt has sent no report for SILENT_AFTER seconds."""
        gang = self._gangs.get(job_uid)
        if gang is None or gang.attempt != attempt:
            return False
        return time.monotonic() - gang.last_report > SILENT_AFTER

    async def run(self) -> None:
        """Poll until cancelled."""
        async with open_session() as session, asyncio.TaskGroup() as group:
            while True:
                for target in list(self._take_due(time.monotonic())):
                    self._polled.add(target.job_uid)
                    group.create_task(self._poll(session, target))
                await asyncio.sleep(min(1.0, self.interval / 4))

    def _take_due(self, now: float) -> Iterator[Target]:
        """Yield the gangs that are due, and set when they are due again."""

        def is_due(uid: str) -> bool:
            if uid in self._polled:
                return False
            return uid not in self._gangs or self._gangs[uid].due <= now

        for target in self.targets(is_due):
            gang = self._gangs.get(target.job_uid)
            if target.pod is None:
                # The report is kept, because the end of the attempt is accounted with it.
                self._gangs.pop(target.job_uid, None)
                continue
            if gang is None or gang.attempt != target.attempt:
                gang = self._gangs[target.job_uid] = _Gang(target.attempt, last_report=now)
            seconds = poll_interval(self.interval, len(self._gangs))
            gang.due = now + seconds * random.uniform(0.9, 1.1)
            yield target

    async def _poll(self, session: aiohttp.ClientSession, target: Target) -> None:
        pod, report = target.pod, None
        assert pod is not None
        # Pods that do not answer delay the reports of their own namespace only.
        async with self._slots[target.key[0]]:
            try:
                report = await fetch(session, pod, target)
            except NoReportError as error:
                self._log_invalid(target, pod, error)
            finally:
                self._polled.discard(target.job_uid)
        if report is not None:
            self.take(target, report)
        else:
            self.miss(target)

    def _log_invalid(self, target: Target, pod: Pod, error: "NoReportError") -> None:
        gang = self._gangs.get(target.job_uid)
        if gang and not gang.invalid_logged:
            gang.invalid_logged = True
            _log.warning("%s/%s: %s", target.key[0], pod.name, error)

    def take(self, target: Target, report: Report) -> None:
        """Store a report, and notify the queue if it changes something."""
        gang = self._gangs.get(target.job_uid)
        if gang is None or gang.attempt != target.attempt:
            return  # The attempt has ended meanwhile.
        known, is_back = self._newest.get(target.job_uid), gang.marked_silent
        gang.last_report, gang.marked_silent = time.monotonic(), False
        self._newest[target.job_uid] = report
        if is_back or is_news(known, report):
            self.notify(target.key)

    def miss(self, target: Target) -> None:
        """Note that no report came, and notify the queue once if the gang has become silent."""
        gang = self._gangs.get(target.job_uid)
        if gang and not gang.marked_silent and self.silent(target.job_uid, target.attempt):
            gang.marked_silent = True
            self.notify(target.key)

    def drop(self, job_uid: str) -> None:
        """Forget a job that is finished or gone."""
        self._newest.pop(job_uid, None)
        self._gangs.pop(job_uid, None)


def poll_interval(interval: float, gangs: int) -> float:
    """Return the seconds between two requests to one of so many gangs.

    Many gangs are polled less often, but often enough that one lost response does not make a gang
    seem silent.
    """
    return max(interval, min(gangs / _MAX_PER_SECOND, SILENT_AFTER / 3))


def is_news(known: Report | None, report: Report) -> bool:
    """Return whether a job must be reconciled for a report.

    Ages and counters grow in every report and do not count. A gang without progress is detected by
    time (plan/deadlines.py), not by its reports.
    """
    if known is None:
        return True
    same = {name: getattr(known, name) for name in ("sequence", "activity")}
    ages = {"activity_age_seconds": known.activity_age_seconds}
    return report.model_copy(update=same | ages) != known


class NoReportError(Exception):
    """A pod returned something else than its report."""


def open_session() -> aiohttp.ClientSession:
    """Return a session for pods, which sends no credentials, keeps no cookies, unpacks nothing."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),  # Reports limits the requests of each namespace.
        timeout=_TIMEOUT,
        cookie_jar=aiohttp.DummyCookieJar(),
        # A compressed response is then not valid JSON, however large its content would be.
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
    )


async def fetch(session: aiohttp.ClientSession, pod: Pod, target: Target) -> Report | None:
    """Return a pod's report, None if there is no response; NoReportError if it is not valid."""
    try:
        # Encloses an IPv6 address in brackets.
        url = URL.build(scheme="http", host=pod.ip or "", port=REPORT_PORT, path=REPORT_PATH)
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            body = await response.content.read(_MAX_BYTES + 1)
            while len(body) <= _MAX_BYTES and not response.content.at_eof():
                body += await response.content.read(_MAX_BYTES + 1 - len(body))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    if len(body) > _MAX_BYTES:
        raise NoReportError(f"the report is larger than {_MAX_BYTES} bytes")
    try:
        report = Report.model_validate_json(body)
    except ValueError:  # The text is not quoted, because it may contain anything.
        raise NoReportError("the response is not a valid report") from None
    expected = (target.job_uid, target.attempt, pod.index)
    if (report.job_uid, report.attempt, report.worker_index) != expected:
        raise NoReportError("the report is of another pod")
    return report
