"""The operator process, `python -m finetune_operator`: starts its parts and ends with the first."""

import asyncio
import contextlib
import functools
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from finetune_api.arguments import Parser
from finetune_client.api import Api
from finetune_client.configuration import ConfigurationError, load_configuration
from finetune_operator import informer, watch
from finetune_operator.events import Recorder
from finetune_operator.health import Health
from finetune_operator.informer import Pods
from finetune_operator.job_metrics import measure
from finetune_operator.jobs import Jobs
from finetune_operator.lease import Elector, LeaseLostError
from finetune_operator.logs import OneLine
from finetune_operator.metrics import Metrics, Reconcile, Snapshot
from finetune_operator.parts import at_most, forever
from finetune_operator.queue import WORKERS, Queue
from finetune_operator.reconcile import Reconciler, guarded
from finetune_operator.reports import Reports, Target, reported_by
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.status import Throttle

_log = logging.getLogger("finetune")
_FLUSH = 2.0  # s for events that wait when the operator ends
# The levels of nested JSON that the API server accepts, and therefore that a user can store in a
# template. If one job could not be parsed, the list of all jobs could not be parsed.
_LEVELS = 10_000


def main() -> int:
    """Run the command line and return the exit code: 1 after a failure, 78 for bad settings."""
    parser = Parser(
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
        configuration = load_configuration(strict=settings.strict_certificates)
    except (SettingsError, ConfigurationError) as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 78
    try:
        asyncio.run(_run(settings, configuration))
    except ExceptionGroup as group:
        for cause in _causes(group):
            # Losing the lease is not a bug, so its message is enough.
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
    """Run all parts until SIGTERM, or until one of them ends."""
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
    """Run the parts until cancelled. SIGTERM and SIGINT set `stop`."""
    queue = Queue()
    metrics = Metrics(lambda: _snapshot(queue, elector, jobs, settings))
    count = metrics.request
    # The lease has connections of its own, so that no slow request delays a renewal.
    lease_api = Api(configuration, count=count)
    elector = Elector(lease_api, settings.lease) if settings.lease else None
    if elector:
        api = Api(configuration, guard=elector.guard, count=count)
        health = Health(queue.longest, elector.describe, page=metrics.page)
    else:
        api = Api(configuration, count=count)
        health = Health(queue.longest, page=metrics.page)
    pods = Pods(queue.add, queue.add_soon, lambda uid: jobs.knows(uid))

    def targets(due: Callable[[str], bool]) -> Iterator[Target]:
        return running_gangs(jobs, pods, due)

    reports = Reports(settings.report_interval, targets, queue.add)

    def removed(uid: str) -> None:
        pods.forget(uid)
        reports.drop(uid)

    jobs = Jobs(queue.add_new, removed, settings.selector, queue.add_ended, measure)
    recorder = Recorder(api)
    throttle = Throttle(settings.progress_write_interval)
    reconciler = Reconciler(
        api, jobs, pods, reports, recorder, settings, throttle, wrote=metrics.write
    )
    reconcile = metrics.timed(guarded(reconciler.reconcile))
    signals = functools.partial(_stop_on_signals, stop)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(forever("health endpoint", health.run(settings.health_port)))
            await _fill(group, api, pods, settings, health)
            watching = watch.run(api, jobs, configuration, settings, health, signals, count)
            group.create_task(forever("watch on jobs", watching))
            leading = _lead(elector, health, queue, reconcile, reports, recorder)
            group.create_task(forever("leader", leading))
            _log.info("operating in %s", ", ".join(settings.namespaces) or "all namespaces")
    finally:
        queue.close()
        await api.close()
        await lease_api.close()


async def _fill(
    group: asyncio.TaskGroup, api: Api, pods: Pods, settings: Settings, health: Health
) -> None:
    """Start the watches on pods and wait until all pods are known.

    A job that is reconciled before would seem to have no pods. A namespace whose pods may not be
    listed is not waited for: its jobs are not reconciled (`Pods.listed`).
    """
    hearts = []
    for namespace in settings.namespaces or (None,):
        where = f"watch on pods in {namespace or 'all namespaces'}"
        heart = health.heart(where, informer.LATE, filled=False, kind="pods")
        group.create_task(forever(where, informer.run(api, pods, namespace, heart)))
        hearts.append(heart)
    for heart in hearts:
        await heart.answered.wait()
    filled = [asyncio.create_task(heart.filled.wait()) for heart in hearts]
    _, others = await asyncio.wait(filled, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()


async def _lead(
    elector: Elector | None,
    health: Health,
    queue: Queue,
    reconcile: Reconcile,
    reports: Reports,
    recorder: Recorder,
) -> None:
    """Do what only the leader does. A standby fills the same caches, and waits here."""
    try:
        if elector:
            # Not earlier: the caches are filled first, however long the API server is away.
            elector.beat = health.heart("leader election", 4 * elector.duration).beat
            await elector.acquire()
        async with asyncio.TaskGroup() as group:
            if elector:
                group.create_task(forever("renewal of the lease", elector.renew()))
            group.create_task(forever("poller of reports", reports.run()))
            group.create_task(forever("recorder of events", recorder.run()))
            for number in range(WORKERS):
                group.create_task(forever(f"worker {number}", queue.work(reconcile)))
    finally:
        # The workers have ended. The last events are sent while the lease is still held, so that
        # the next leader never meets a write of this one.
        await _flush(recorder)
        if elector:
            await elector.release()


async def _flush(recorder: Recorder) -> None:
    """Send the events that wait, as far as the time and the lease allow."""
    try:
        if not await at_most(_FLUSH, recorder.flush()):
            _log.warning("events were not sent within %.0f s", _FLUSH)
    except LeaseLostError as error:
        _log.warning("events were not sent: %s", error)


def _snapshot(queue: Queue, elector: Elector | None, jobs: Jobs, settings: Settings) -> Snapshot:
    """Return the state that the metrics show."""
    longest, seen, ended = (
        queue.longest(),
        jobs.seen(),
        jobs.ended(time.time() - settings.ended_metrics),
    )
    left = max(0.0, elector.left) if elector else None
    return Snapshot(
        waiting=len(queue),
        longest=longest[1] if longest else 0.0,
        leading=left is None or left > 0,
        lease=left,
        jobs=seen,
        ended=ended,
    )


def running_gangs(jobs: Jobs, pods: Pods, due: Callable[[str], bool]) -> Iterator[Target]:
    """Yield the gangs to poll for a report: those of the jobs (by uid) that are due."""
    for key, job in jobs.read():
        uid, attempt = job.uid, job.status.attempt
        if attempt is None or job.status.finished or not due(uid):
            continue
        yield Target(key, uid, attempt, reported_by(pods.made_by(job), attempt))


if __name__ == "__main__":
    sys.exit(main())
