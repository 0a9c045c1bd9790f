"""Pulls reports from running gangs. What comes out of a pod is untrusted."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import aiohttp
from pydantic import ValidationError

from finetune_api.names import REPORT_PATH, REPORT_PORT
from finetune_api.run import Report
from finetune_operator.plan.observe import Pod
from finetune_operator.queue import Key

_log = logging.getLogger("finetune.reports")
_MOST_BYTES = 256 * 1024
_PARALLEL = 32
_TIMEOUT = aiohttp.ClientTimeout(total=2)
SILENT_AFTER = 30.0  # s
IDLE = 60.0  # s; from here on a deadline may strike


@dataclass(frozen=True)
class Target:
    """A gang to ask."""

    key: Key
    job_uid: str
    attempt: int
    pods: tuple[Pod, ...]  # running ones with an address, by index


@dataclass
class Reports:
    """Newest report of every running gang."""

    interval: float
    targets: Callable[[], Iterable[Target]]
    notify: Callable[[Key], None]
    _newest: dict[str, Report] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def newest(self, job_uid: str, attempt: int | None) -> Report | None:
        """Last report of worker 0 of that attempt."""
        report = self._newest.get(job_uid)
        return report if report and report.attempt == attempt else None

    def silent(self, job_uid: str) -> bool:
        """Whether a running gang could not be asked for a while."""
        heard = self._heard.get(job_uid)
        return heard is not None and time.monotonic() - heard > SILENT_AFTER

    async def run(self) -> None:
        """Ask for ever."""
        slots = asyncio.Semaphore(_PARALLEL)
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                now = time.monotonic()
                targets = list(self.targets())
                self._forget({target.job_uid for target in targets})
                due = [t for t in targets if self._due.get(t.job_uid, 0.0) <= now]
                for target in due:
                    jitter = random.uniform(0.9, 1.1)
                    self._due[target.job_uid] = now + self.interval * jitter
                    self._heard.setdefault(target.job_uid, now)
                await asyncio.gather(*(self._ask(session, slots, target) for target in due))
                await asyncio.sleep(min(1.0, self.interval / 4))

    async def _ask(
        self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, target: Target
    ) -> None:
        async with slots:
            for pod in target.pods[:2]:  # the second only when the first does not answer
                report = await fetch(session, pod, target)
                if report is None:
                    continue
                self._heard[target.job_uid] = time.monotonic()
                if report.worker_index == 0:
                    known = self._newest.get(target.job_uid)
                    self._newest[target.job_uid] = report
                    if tells_more(known, report):
                        self.notify(target.key)
                return
        if self.silent(target.job_uid):
            self.notify(target.key)

    def _forget(self, running: set[str]) -> None:
        for gone in self._due.keys() - running:
            del self._due[gone]
            self._heard.pop(gone, None)
            # The report itself stays until the attempt's end was accounted with it.

    def drop(self, job_uid: str) -> None:
        """The job is finished or gone."""
        self._newest.pop(job_uid, None)


def tells_more(known: Report | None, report: Report) -> bool:
    """Whether a job must be looked at for it. Ages and counters grow in every report."""
    if known is None or report.activity_age_seconds > IDLE:
        return True
    same = {name: getattr(known, name) for name in ("sequence", "activity", "ranks")}
    ages = {"activity_age_seconds": known.activity_age_seconds}
    return report.model_copy(update=same | ages) != known


async def fetch(session: aiohttp.ClientSession, pod: Pod, target: Target) -> Report | None:
    """One pod's report, None when it cannot be had or is not what it should be."""
    url = f"http://{pod.ip}:{REPORT_PORT}{REPORT_PATH}"
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            body = await response.content.read(_MOST_BYTES + 1)
            while len(body) <= _MOST_BYTES and not response.content.at_eof():
                body += await response.content.read(_MOST_BYTES + 1 - len(body))
        if len(body) > _MOST_BYTES:
            _log.warning("%s: its report is larger than %d bytes", pod.name, _MOST_BYTES)
            return None
        report = Report.model_validate_json(body)
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
        return None
    asked = (target.job_uid, target.attempt, pod.index)
    if (report.job_uid, report.attempt, report.worker_index) != asked:
        _log.warning("%s answered for another pod", pod.name)
        return None
    return report
