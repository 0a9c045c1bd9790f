"""Observation from outside of the operators: processes, and the API server's audit log."""

import asyncio
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_api.base import Object
from finetune_client.api import JSON, Api
from finetune_client.errors import TRANSIENT, ApiError

_TICKS = os.sysconf("SC_CLK_TCK")
WRITES = ("create", "update", "patch", "delete", "deletecollection")
# Metadata of every request of the operators, and of the jobs that are applied.
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
}


def policy(users: list[str], jobs: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the audit policy; `jobs` are pairs of group and plural."""
    kinds = [{"group": group, "resources": [plural]} for group, plural in jobs]
    return POLICY | {
        "rules": [
            {"level": "Metadata", "users": users},
            {"level": "Metadata", "verbs": ["create"], "resources": kinds},
            {"level": "None"},
        ]
    }


async def everything(
    api: Api, path: str, *, accept: str = JSON, **query: str
) -> AsyncIterator[Object]:
    """Yield all objects as ADDED events, then their changes, without end; again after a failure."""
    while True:
        try:
            async for event in api.watch(path, accept=accept, timeoutSeconds="3600", **query):
                if event["type"] != "BOOKMARK":
                    yield event
        except (ApiError, *TRANSIENT) as error:
            print(f"watch of {path}: {error}", file=sys.stderr)
            await asyncio.sleep(1)  # For example "storage is (re)initializing", for a new kind.


@dataclass(frozen=True)
class Request:
    """One line of the audit log."""

    user: str
    verb: str
    resource: str  # with subresource
    name: str
    code: int
    dry_run: bool
    received: float  # s since the epoch
    answered: float

    @property
    def writes(self) -> bool:
        """Whether the request would change an object; a dry run would not."""
        return self.verb in WRITES and not self.dry_run


class Audit:
    """The audit log, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self.requests: list[Request] = []

    def read(self) -> list[Request]:
        """Return all requests so far."""
        if not self.path.exists():
            return self.requests
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        self.requests += [_request(json.loads(line)) for line in complete.splitlines()]
        return self.requests


def _request(line: dict[str, Any]) -> Request:
    target = line.get("objectRef", {})
    kind = target.get("resource", "") + (
        f"/{target['subresource']}" if "subresource" in target else ""
    )
    return Request(
        user=line["user"]["username"],
        verb=line["verb"],
        resource=kind,
        name=target.get("name", ""),
        code=line.get("responseStatus", {}).get("code", 0),
        dry_run="dryRun=" in line["requestURI"],
        received=datetime.fromisoformat(line["requestReceivedTimestamp"]).timestamp(),
        answered=datetime.fromisoformat(line["stageTimestamp"]).timestamp(),
    )


def by_kind(requests: Iterable[Request], jobs: int) -> str:
    """Format the requests per job by kind, most frequent first."""
    counts = Counter(f"{r.verb} {r.resource}{' (dry run)' if r.dry_run else ''}" for r in requests)
    return ", ".join(f"{count / jobs:.3g} {kind}" for kind, count in counts.most_common())


def job_of(pod: str) -> str:
    """Return the job of a pod, whose name begins with that of its job, such as j00001."""
    found = re.match(r"(j\d+)-", pod)
    return found.group(1) if found else ""


@dataclass
class Creation:
    """When a job was applied and its pods were created, in seconds since the epoch."""

    applied: float = 0.0
    prepare: float | None = None
    pods: list[float] = field(default_factory=list)


def creations(requests: Iterable[Request], contender_user: str, plural: str) -> dict[str, Creation]:
    """Return the creations by job."""
    jobs: dict[str, Creation] = {}
    for request in requests:
        if request.verb != "create" or request.dry_run or request.code != 201:
            continue
        if request.resource == plural and request.user != contender_user:
            jobs.setdefault(request.name, Creation()).applied = request.received
        elif request.resource == "pods" and request.user == contender_user:
            job = jobs.setdefault(job_of(request.name), Creation())
            if request.name.endswith("-prepare"):
                job.prepare = request.answered
            else:
                job.pods.append(request.answered)
    return jobs


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def machine_seconds() -> float:
    """Return the CPU time of all processes of the machine so far."""
    user, nice, system, _idle, _wait, *rest = (
        Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return sum(int(ticks) for ticks in (user, nice, system, *rest[:3])) / _TICKS


def memory_mib(pid: int, kind: str = "VmRSS") -> float:
    """Return the resident memory of a process, or its maximum (VmHWM)."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{kind}:\s+(\d+) kB", text)
    return int(found.group(1)) / 1024 if found else 0.0


def components() -> dict[str, int]:
    """Return the process ids of the control plane by name."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if command[0] in (b"etcd", b"kube-apiserver", b"kube-controller-manager") or (
                len(command) > 1 and command[0].endswith(b"/controlplane")
            ):
                found[command[1].decode()] = int(entry.name)
    return found


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(1, math.ceil(len(values) * share)) - 1]
