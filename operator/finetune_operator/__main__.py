"""The operator process: `python -m finetune_operator`; any part that dies ends the whole."""

import argparse
import asyncio
import contextlib
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

from kubernetes.config import ConfigException

from finetune_operator import informer, watch
from finetune_operator.access import load_configuration
from finetune_operator.events import Recorder
from finetune_operator.health import Health
from finetune_operator.informer import Pods
from finetune_operator.jobs import Jobs
from finetune_operator.kube import Kube
from finetune_operator.lease import Elector, LeaseLostError
from finetune_operator.logs import OneLine
from finetune_operator.metrics import Look, Metrics, View
from finetune_operator.queue import Queue
from finetune_operator.reconcile import Reconciler, guarded
from finetune_operator.reports import Reports, Target
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.status import Throttle

_log = logging.getLogger("finetune")
_WORKERS = 8
# Levels of JSON that the API server takes, so that anybody can store them in a template. A reader
# that gives up on one job gives up on the list of all jobs.
_LEVELS = 10_000


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_operator",
        description="Runs FineTuneJobs. Settings come from FINETUNE_* variables.",
    )
    parser.add_argument("--version", action="version", version=version("finetune-operator"))
    parser.add_argument("--verbose", action="store_true", help="log kopf's own messages too")
    arguments = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("kopf").setLevel(logging.INFO if arguments.verbose else logging.WARNING)
    sys.setrecursionlimit(2 * _LEVELS + 5_000)
    try:
        settings = Settings.from_environment()
        configuration = load_configuration()
    except (SettingsError, ConfigException) as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 78
    try:
        asyncio.run(_run(settings, configuration))
    except ExceptionGroup as group:
        for cause in _causes(group):
            # That another replica may lead is no fault of ours: words are enough.
            trace = None if isinstance(cause, LeaseLostError) else cause
            _log.error("ending: %s", cause, exc_info=trace)
        return 1
    return 0


def _causes(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for cause in group.exceptions:
        if isinstance(cause, ExceptionGroup):
            yield from _causes(cause)
        else:
            yield cause


async def _run(settings: Settings, configuration: object) -> None:
    """Everything at once, until SIGTERM or until one part dies."""
    stop = asyncio.Event()
    _stop_on_signals(stop)
    parts = asyncio.create_task(operate(settings, configuration, stop))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({parts, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if parts.done():
        parts.result()
    parts.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await parts
    _log.info("stopped")


def _stop_on_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def operate(settings: Settings, configuration: object, stop: asyncio.Event) -> None:
    """Run the parts until cancelled; `stop` is set by SIGTERM and SIGINT."""
    queue = Queue()
    metrics = Metrics(lambda: _view(queue, elector, jobs))
    count = metrics.request
    # Its own connections: nothing that hangs delays a renewal.
    lease_kube = Kube(configuration, counted=count)
    elector = Elector(lease_kube, settings.lease) if settings.lease else None
    if elector:
        kube = Kube(configuration, elector.guard, counted=count)
        health = Health(queue.longest, elector.describe, page=metrics.page)
    else:
        kube = Kube(configuration, counted=count)
        health = Health(queue.longest, page=metrics.page)
    pods = Pods(queue.add, queue.add_soon, lambda uid: jobs.knows(uid))

    def targets(due: Callable[[str], bool]) -> Iterator[Target]:
        return running_gangs(jobs, pods, due)

    reports = Reports(settings.report_interval, targets, queue.add)

    def removed(uid: str) -> None:
        pods.forget(uid)
        reports.drop(uid)

    jobs = Jobs(queue.add_new, removed, settings.selector)
    throttle = Throttle(settings.progress_write_interval)
    reconciler = Reconciler(
        kube, jobs, pods, reports, Recorder(kube), settings, throttle, wrote=metrics.write
    )
    look = metrics.timed(guarded(reconciler.reconcile))
    signals = functools.partial(_stop_on_signals, stop)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(health.run(settings.health_port))
            await _fill(group, kube, pods, settings, health)
            group.create_task(
                watch.run(kube, jobs, configuration, settings, health, signals, count)
            )
            group.create_task(_lead(elector, queue, look, reports))
            _log.info("operating in %s", ", ".join(settings.namespaces) or "all namespaces")
    finally:
        queue.close()
        await kube.close()
        await lease_kube.close()


async def _fill(
    group: asyncio.TaskGroup, kube: Kube, pods: Pods, settings: Settings, health: Health
) -> None:
    """Until all pods are known: a job that is looked at before would seem to have none.

    A namespace that is refused is not waited for: its jobs are not looked at (`Pods.listed`).
    """
    hearts = []
    for namespace in settings.namespaces or (None,):
        where = f"watch on pods in {namespace or 'all namespaces'}"
        heart = health.heart(where, informer.LATE, filled=False, kind="pods")
        group.create_task(informer.run(kube, pods, namespace, heart))
        hearts.append(heart)
    for heart in hearts:
        await heart.answered.wait()
    filled = [asyncio.create_task(heart.filled.wait()) for heart in hearts]
    _, others = await asyncio.wait(filled, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()


async def _lead(elector: Elector | None, queue: Queue, look: Look, reports: Reports) -> None:
    """What only the leader does; a standby has the same caches and works on nothing."""
    try:
        if elector:
            await elector.acquire()
        async with asyncio.TaskGroup() as group:
            if elector:
                group.create_task(elector.renew())
            group.create_task(reports.run())
            for _ in range(_WORKERS):
                group.create_task(queue.work(look))
    finally:
        # The workers have ended: whoever leads next meets no write of ours.
        if elector:
            await elector.release()


def _view(queue: Queue, elector: Elector | None, jobs: Jobs) -> View:
    """For the metrics."""
    longest = queue.longest()
    left = max(0.0, elector.left) if elector else None
    return View(
        waiting=len(queue),
        longest=longest[1] if longest else 0.0,
        leading=left is None or left > 0,
        lease=left,
        jobs=jobs.seen(),
    )


def running_gangs(jobs: Jobs, pods: Pods, due: Callable[[str], bool]) -> Iterator[Target]:
    """Gangs whose report can be asked for, of the jobs (by uid) whose turn it is."""
    for key, job in jobs.read():
        uid, attempt = job.uid, job.status.attempt
        if attempt is None or job.status.finished or not due(uid):
            continue
        running = [
            pod
            for pod in pods.made_by(job)
            if pod.role == "worker" and pod.attempt == attempt and pod.running and pod.ip
        ]
        yield Target(key, uid, attempt, tuple(sorted(running, key=lambda pod: pod.index)))


if __name__ == "__main__":
    sys.exit(main())
