"""Choosing a pod of a job (pure)."""

from dataclasses import dataclass

from finetune_api import names
from finetune_api.base import Object
from finetune_cli.errors import CliError


@dataclass(frozen=True)
class Wanted:
    """Which log; None means the newest attempt."""

    worker: int = 0
    attempt: int | None = None
    prepare: bool = False


def pick(pods: list[Object], wanted: Wanted, status: Object, job: str) -> Object | None:
    """The pod, None when it is not there yet; CliError when it cannot come any more."""
    newest = status.get("attempt")
    if wanted.prepare or (newest is None and wanted.attempt is None):
        found = [pod for pod in pods if _labels(pod).get(names.LABEL_ROLE) == "prepare"]
        if not found and (newest is not None or _finished(status)):
            raise CliError(f"the prepare pod of {job} is gone")
        return max(found, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)
    attempt = wanted.attempt or newest
    _check_range(wanted, newest, status, job)
    for pod in pods:
        labels = _labels(pod)
        place = (labels.get(names.LABEL_ATTEMPT), labels.get(names.LABEL_WORKER_INDEX))
        if place == (str(attempt), str(wanted.worker)):
            return pod
    if attempt != newest or _finished(status):
        left = sorted({int(a) for p in pods if (a := _labels(p).get(names.LABEL_ATTEMPT))})
        there = f"attempts with pods: {', '.join(map(str, left))}" if left else "no pod is left"
        raise CliError(
            f"the pod of worker {wanted.worker} in attempt {attempt} of {job} is gone; {there}"
        )
    return None


def _check_range(wanted: Wanted, newest: int | None, status: Object, job: str) -> None:
    if wanted.attempt is not None and (newest is None or wanted.attempt > newest):
        raise CliError(f"{job} has no attempt {wanted.attempt}; the newest is {newest or 'none'}")
    workers = status.get("workers", {}).get("desired")
    if workers is not None and wanted.worker >= workers:
        raise CliError(f"{job} has no worker {wanted.worker}; allowed are 0 to {workers - 1}")


def state(pod: Object) -> str:
    """`waiting: REASON`, `running` or `ended` for the trainer container."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        if container["name"] == names.CONTAINER:
            found = container.get("state", {})
            if "terminated" in found:
                return "ended"
            if "running" in found:
                return "running"
            if "waiting" in found:
                return f"waiting: {found['waiting'].get('reason', '')}"
    if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return "ended"
    return "waiting: not scheduled or not started yet"


def _labels(pod: Object) -> dict[str, str]:
    labels: dict[str, str] = pod["metadata"].get("labels", {})
    return labels


def _finished(status: Object) -> bool:
    return status.get("phase") in ("Succeeded", "Failed")
