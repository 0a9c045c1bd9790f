"""The operator process: `python -m finetune_operator`; any part that dies ends the whole."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator

from kubernetes.config import ConfigException

from finetune_operator import informer, watch
from finetune_operator.events import Recorder
from finetune_operator.health import Health
from finetune_operator.informer import Pods
from finetune_operator.jobs import Jobs
from finetune_operator.kube import Kube, load_configuration
from finetune_operator.queue import Queue
from finetune_operator.reconcile import Reconciler
from finetune_operator.reports import Reports, Target
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.status import Throttle

_log = logging.getLogger("finetune")
_WORKERS = 8


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_operator",
        description="Runs FineTuneJobs. Settings come from FINETUNE_* variables.",
    )
    parser.add_argument("--verbose", action="store_true", help="log kopf's own messages too")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("kopf").setLevel(logging.INFO if arguments.verbose else logging.WARNING)
    try:
        settings = Settings.from_environment()
        configuration = load_configuration()
    except (SettingsError, ConfigException) as error:
        print(f"finetune-operator: {error}", file=sys.stderr)
        return 78
    try:
        asyncio.run(_run(settings, configuration))
    except ExceptionGroup as group:
        for cause in group.exceptions:
            _log.error("ending: %s", cause, exc_info=cause)
        return 1
    return 0


async def _run(settings: Settings, configuration: object) -> None:
    """Everything at once, until SIGTERM or until one part dies."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
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


async def operate(settings: Settings, configuration: object, stop: asyncio.Event) -> None:
    """Run the parts until cancelled; sets `stop` when a signal ended the watch."""
    queue, kube, health = Queue(), Kube(configuration), Health()
    pods = Pods(queue.add)
    jobs = Jobs(queue.add, pods.forget)
    reports = Reports(settings.report_interval, lambda: _targets(jobs, pods), queue.add)
    throttle = Throttle(settings.progress_write_interval)
    recorder = Recorder(kube)
    reconciler = Reconciler(kube, jobs, pods, reports, recorder, settings, throttle)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(health.run(settings.health_port))
            listed = []
            for namespace in settings.namespaces or (None,):
                listed.append(asyncio.Event())
                group.create_task(informer.run(kube, pods, namespace, listed[-1]))
            for event in listed:
                await event.wait()
            # Only now: a job that is looked at before its pods are known would seem to have none.
            group.create_task(reports.run())
            for _ in range(_WORKERS):
                group.create_task(queue.work(reconciler.reconcile))
            group.create_task(_watch(jobs, configuration, settings, health, stop))
            _log.info("operating in %s", ", ".join(settings.namespaces) or "all namespaces")
    finally:
        queue.close()
        await kube.close()


async def _watch(
    jobs: Jobs, configuration: object, settings: Settings, health: Health, stop: asyncio.Event
) -> None:
    """kopf takes over SIGTERM and SIGINT while it runs, and returns on them."""
    await watch.run(jobs, configuration, settings.namespaces, health.ready)
    stop.set()


def _targets(jobs: Jobs, pods: Pods) -> Iterator[Target]:
    """Gangs whose report can be asked for."""
    for key, item in jobs.items():
        attempt = item.get("status", {}).get("attempt")
        if attempt is None:
            continue
        uid = item["metadata"]["uid"]
        running = [
            pod
            for pod in pods.of(uid)
            if pod.role == "worker" and pod.attempt == attempt and pod.running and pod.ip
        ]
        if running:
            yield Target(key, uid, attempt, tuple(sorted(running, key=lambda pod: pod.index)))


if __name__ == "__main__":
    sys.exit(main())
