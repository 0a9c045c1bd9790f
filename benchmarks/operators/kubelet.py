"""A scripted kubelet and scheduler in one process: pods run and prepare pods end immediately.

Each pod is bound through its `binding` subresource, as by a scheduler, and then reported as running
with an address of its own in 127/8. This process serves the reports of all workers. It watches only
the metadata of pods that are not bound yet, so that it needs little CPU time itself.
"""

import argparse
import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from aiohttp import web
from benchmarks.operators import observe, sandbox

from finetune_api import names
from finetune_api.base import Object, format_time
from finetune_api.progress import DataSummary, Progress, StepLedger
from finetune_api.run import PrepareResult, Report, Result
from finetune_client.api import MERGE_PATCH, METADATA, Api
from finetune_client.configuration import load_configuration
from finetune_client.errors import ApiError

NODE = "scripted"
_PARALLEL = 32
_TOTAL_STEPS = 10_000
_PREPARED = Result(
    outcome="Succeeded",
    reason="Completed",
    prepared=PrepareResult(
        prepared_digest="p" * 64,
        run_digest="r" * 64,
        model_revision="m" * 64,
        parameter_count=8_000_000_000,
        data=DataSummary(
            examples=51_200,
            rows=7_551,
            tokens=30_100_000,
            trained_tokens=11_800_000,
            packing_efficiency=0.97,
        ),
    ),
).to_termination_message()


class Trainers:
    """The reports of the workers."""

    def __init__(self) -> None:
        self._workers: dict[str, tuple[dict[str, str], datetime]] = {}
        self._step_seconds = 0.0
        self._moving_since = 0.0
        self._started_at = time.monotonic()

    def add(self, labels: dict[str, str]) -> str:
        """Add a worker and return its address."""
        number = len(self._workers)
        address = f"127.{100 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}"
        self._workers[address] = (labels, datetime.now(UTC))
        return address

    async def report(self, request: web.Request) -> web.Response:
        """Serve GET /v1/report. Between steps only the ages grow."""
        worker = self._workers.get(request.host.partition(":")[0])
        if worker is None or names.LABEL_ATTEMPT not in worker[0]:
            return web.Response(status=404)
        labels, since = worker
        step, age = self._position()
        index = int(labels[names.LABEL_WORKER_INDEX])
        progress = Progress(step=step, total_steps=_TOTAL_STEPS, train_loss=1.7, tokens_seen=step)
        report = Report(
            job_uid=labels[names.LABEL_JOB_UID],
            attempt=int(labels[names.LABEL_ATTEMPT]),
            worker_index=index,
            sequence=step,
            stage="Training",
            stage_since=since,
            activity=step,
            activity_age_seconds=round(age, 1),
            progress=progress,
            ledger=StepLedger(productive_seconds=step * self._step_seconds, highest_step=step),
        )
        return web.Response(text=report.to_json(), content_type="application/json")

    def _position(self) -> tuple[int, float]:
        if not self._step_seconds:
            return 1, time.monotonic() - self._started_at
        steps, age = divmod(time.monotonic() - self._moving_since, self._step_seconds)
        return 1 + int(steps), age

    async def train(self, request: web.Request) -> web.Response:
        """Serve POST /train?step-seconds=S: from now on each job steps every S seconds."""
        self._step_seconds = float(request.query["step-seconds"])
        self._moving_since = time.monotonic()
        return web.Response()


async def serve(kubeconfig: Path, log: Path) -> None:
    """Act as the kubelet of all pods until cancelled."""
    trainers = Trainers()
    app = web.Application()
    app.add_routes([web.get(names.REPORT_PATH, trainers.report)])
    app.add_routes([web.post("/train", trainers.train)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    # All addresses of this network, which is a loopback that only this sandbox has.
    await web.TCPSite(runner, "0.0.0.0", names.REPORT_PORT).start()
    slots = asyncio.Semaphore(_PARALLEL)
    running: set[asyncio.Task[None]] = set()
    async with Api(load_configuration(kubeconfig), timeout=600) as api:
        with log.open("a", buffering=1) as ended:
            selector = {"fieldSelector": "spec.nodeName="}
            pods = observe.everything(api, "/api/v1/pods", accept=METADATA, **selector)
            async for event in pods:
                if event["type"] == "ADDED":
                    life = _live(api, slots, trainers, event["object"]["metadata"], ended)
                    task = asyncio.create_task(life)
                    running.add(task)
                    task.add_done_callback(running.discard)


async def _live(
    api: Api, slots: asyncio.Semaphore, trainers: Trainers, metadata: Object, ended: TextIO
) -> None:
    labels = metadata.get("labels", {})
    name, prepares = metadata["name"], labels.get(names.LABEL_ROLE) == "prepare"
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{name}"
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name},
        "target": {"kind": "Node", "name": NODE},
    }
    container = names.CONTAINER if names.LABEL_JOB_UID in labels else "pytorch"
    async with slots:
        try:
            await api.create(f"{path}/binding", binding)
            status = _running(container, trainers.add(labels))
            await _set_status(api, path, status)
            if prepares:
                await _set_status(api, path, _ended(container))
                print(time.time(), name, file=ended)
        except ApiError as error:
            if error.code != 404:  # The pod was deleted meanwhile.
                raise


async def _set_status(api: Api, path: str, status: Object) -> None:
    """Patch the status without parsing the response, to leave the CPU to the operator."""
    body = {"status": status}
    await api.request("PATCH", f"{path}/status", {}, body, MERGE_PATCH, METADATA)


def _running(container: str, address: str) -> Object:
    now = format_time(datetime.now(UTC))
    kinds = ("PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": "127.0.0.1",
        "startTime": now,
        "conditions": [{"type": k, "status": "True", "lastTransitionTime": now} for k in kinds],
        "containerStatuses": [_container(container, {"running": {"startedAt": now}})],
    }


def _ended(container: str) -> Object:
    now = format_time(datetime.now(UTC))
    end = {
        "exitCode": 0,
        "reason": "Completed",
        "startedAt": now,
        "finishedAt": now,
        "message": _PREPARED,
    }
    return {
        "phase": "Succeeded",
        "containerStatuses": [_container(container, {"terminated": end})],
    }


def _container(name: str, state: Object) -> Object:
    return {
        "name": name,
        "image": "trainer:1",
        "imageID": "",
        "ready": "running" in state,
        "started": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("log", type=Path, help="when prepare pods ended")
    arguments = parser.parse_args()
    if sandbox.state() is None:
        parser.error(
            "it listens on all addresses and must run inside of benchmarks.operators.sandbox"
        )
    asyncio.run(serve(arguments.kubeconfig, arguments.log))


if __name__ == "__main__":
    main()
