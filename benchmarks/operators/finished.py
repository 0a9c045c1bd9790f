"""Finished jobs, as an installation that deletes none collects them, and the cost of a scrape."""

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta

import aiohttp
from benchmarks.operators.contenders import Ours
from benchmarks.operators.show import console, progress

from finetune_api.base import Object, format_time
from finetune_client.api import MERGE_PATCH, METADATA, Api

_WRITERS = 16
_APART = timedelta(minutes=10)  # between the ends of two jobs: 10,000 of them took ten weeks
_RUN = timedelta(hours=6)
_STEPS = 400


async def create(api: Api, contender: Ours, count: int) -> None:
    """Create jobs whose status says that they have ended, the newest one just now."""
    collection = f"{contender.collection}/namespaces/{contender.namespace}/{contender.plural}"
    slots, now = asyncio.Semaphore(_WRITERS), datetime.now(UTC).replace(microsecond=0)

    async def one(number: int) -> None:
        name = f"f{number:05d}"
        async with slots:
            await api.create(collection, contender.job(name, 2))
            body = {"status": _status(name, now - number * _APART, failed=number % 10 == 0)}
            path = f"{collection}/{name}/status"
            await api.request("PATCH", path, {}, body, MERGE_PATCH, METADATA)

    with progress() as bar:
        task = bar.add_task("finished jobs", total=count)
        for first in range(0, count, 500):
            await asyncio.gather(*(one(n) for n in range(first, min(first + 500, count))))
            bar.update(task, completed=min(first + 500, count))
            if not console.is_terminal:
                console.print(f"  {min(first + 500, count)} of {count} finished jobs created")


def _status(name: str, end: datetime, *, failed: bool) -> Object:
    """Return the status of a job with two attempts, as the operator writes it."""
    start = end - _RUN
    middle = start + _RUN / 3
    root = f"pvc://workspace/runs/{name}"
    message = (
        "worker 1 ended with exit code 1: RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    )
    newest = _checkpoint(root, _STEPS, end)
    condition = {"lastTransitionTime": format_time(end), "observedGeneration": 1}
    conditions = [
        {"type": "Accepted", "status": "True", "reason": "Accepted"},
        {"type": "WorkersReady", "status": "False", "reason": "Finished"},
        {"type": "CheckpointVerified", "status": "True", "reason": "Verified"},
        {"type": "Suspended", "status": "False", "reason": "NotSuspended"},
        {"type": "Succeeded", "status": str(not failed), "reason": "Finished"},
        {"type": "Failed", "status": str(failed), "reason": "Finished"},
    ]
    return {
        "observedGeneration": 1,
        "phase": "Failed" if failed else "Succeeded",
        "reason": "Crashed" if failed else "Completed",
        "message": message if failed else f"the model is at {root}/final",
        "startTime": format_time(start),
        "completionTime": format_time(end),
        "attempt": 2,
        "restarts": 1,
        "countedRestarts": 1,
        "lastFailureStep": 130,
        "resolved": {
            "image": "registry.example/finetune-trainer@sha256:" + "0" * 64,
            "modelRevision": "m" * 64,
            "preparedDigest": "p" * 64,
            "runDigest": "r" * 64,
            "parameterCount": 8_030_261_248,
        },
        "plan": {
            "zeroStage": 2,
            "microBatchSize": 1,
            "gradientAccumulationSteps": 4,
            "globalBatchSize": 8,
            "learningRate": 2e-5,
            "totalSteps": _STEPS,
            "warmupSteps": 12,
            "checkpointBytes": 96_363_134_976,
        },
        "data": {
            "examples": 51_200,
            "rows": 7_551,
            "tokens": 30_100_000,
            "trainedTokens": 11_800_000,
            "packingEfficiency": 0.97,
            "validationExamples": 80,
            "stepsPerEpoch": 943,
            "sources": [
                {
                    "source": "pvc://workspace/data/train.jsonl",
                    "rows": 7_551,
                    "examples": 51_200,
                    "passes": 1.0,
                }
            ],
        },
        "workers": {"desired": 2, "running": 0, "pending": 0, "failed": 0},
        "progress": {
            "step": _STEPS,
            "totalSteps": _STEPS,
            "epoch": 0.424,
            "trainLoss": 1.234,
            "learningRate": 0.0,
            "gradNorm": 0.81,
            "tokensSeen": 12_800_000,
            "tokensPerSecond": 15_803.2,
            "trainedTokensPerSecond": 6_104.9,
            "mfu": 0.47,
            "etaSeconds": 0,
            "lastUpdateTime": format_time(end),
        },
        "usage": {
            "deviceSeconds": 43_200,
            "productiveDeviceSeconds": 38_000,
            "lostDeviceSeconds": 2_200,
            "overheadDeviceSeconds": 3_000,
            "gpuHours": "12.00",
            "estimated": False,
        },
        "checkpoints": [
            newest,
            *(_checkpoint(root, step, end) for step in (360, 320)),
        ],
        "latestCheckpoint": newest,
        "attempts": [
            _attempt(1, start, middle, "Failed", message),
            _attempt(2, middle, end, "Failed" if failed else "Succeeded", message),
        ],
        "display": {
            "progress": "100%",
            "step": f"{_STEPS}/{_STEPS}",
            "loss": "1.234",
            "gpuHours": "12.00",
            "checkpoint": str(_STEPS),
            "workers": "0/2",
        },
        "conditions": [
            {**c, "message": "as of the end of the job", **condition} for c in conditions
        ],
    }


def _checkpoint(root: str, step: int, time_: datetime) -> Object:
    return {
        "step": step,
        "location": f"{root}/checkpoints/step-{step:08d}-e0002",
        "creationTime": format_time(time_),
        "sizeBytes": 96_363_134_976,
        "verified": True,
        "worldSize": 2,
    }


def _attempt(number: int, start: datetime, end: datetime, outcome: str, message: str) -> Object:
    failed = outcome == "Failed"
    return {
        "number": number,
        "workers": 2,
        "devicesPerWorker": 1,
        "startTime": format_time(start),
        "runningTime": format_time(start + timedelta(seconds=40)),
        "completionTime": format_time(end),
        "created": True,
        "outcome": outcome,
        "activeSeconds": int((end - start).total_seconds()) - 40,
        "reason": "Crashed" if failed else "Completed",
        "message": message if failed else "the model is complete",
        "deviceSeconds": 2 * int((end - start).total_seconds()),
        "productiveDeviceSeconds": int((end - start).total_seconds()),
        "firstStep": 0,
        "lastStep": _STEPS,
        "checkpointStep": _STEPS,
        "settled": True,
        **({"worker": 1, "exitCode": 1, "counted": True} if failed else {}),
    }


async def processed(port: int, count: int) -> None:
    """Wait until the operator has reconciled so many jobs since its start."""
    pattern = re.compile(
        rb'^finetune_operator_reconcile_duration_seconds_count.*done"} (.*)$', re.M
    )
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                found = pattern.search(await response.read())
            if found and float(found[1]) >= count:
                return
            await asyncio.sleep(2)


async def scrape(port: int) -> tuple[float, int, int]:
    """Return the seconds, bytes and lines of the page of metrics: the median time of three."""
    times, page = [], b""
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            begin = time.monotonic()
            async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
                response.raise_for_status()
                page = await response.read()
            times.append(time.monotonic() - begin)
    return sorted(times)[1], len(page), page.count(b"\n")
