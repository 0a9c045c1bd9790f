"""Chooses the pod of a job whose log is printed (pure functions)."""

from dataclasses import dataclass

from finetune_api import names
from finetune_api.base import Object
from finetune_cli.errors import CliError


@dataclass(frozen=True)
class Selection:
    """The pod whose log the user asked for; attempt None means the newest."""

    worker: int = 0
    attempt: int | None = None
    prepare: bool = False


def pick_pod(pods: list[Object], selection: Selection, status: Object, job: str) -> Object | None:
    """Return the pod, or None if it does not exist yet; CliError if it no longer exists."""
    newest = status.get("attempt")
    if selection.prepare or (newest is None and selection.attempt is None):
        found = [pod for pod in pods if _labels(pod).get(names.LABEL_ROLE) == "prepare"]
        if not found and (newest is not None or _finished(status)):
            raise CliError(f"the prepare pod of {job} is gone")
        return max(found, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)
    attempt = selection.attempt or newest
    _check_range(selection, newest, status, job)
    for pod in pods:
        labels = _labels(pod)
        position = (labels.get(names.LABEL_ATTEMPT), labels.get(names.LABEL_WORKER_INDEX))
        if position == (str(attempt), str(selection.worker)):
            return pod
    if attempt != newest or _finished(status):
        left = sorted({int(a) for p in pods if (a := _labels(p).get(names.LABEL_ATTEMPT))})
        hint = f"attempts with pods: {', '.join(map(str, left))}" if left else "no pod is left"
        raise CliError(
            f"the pod of worker {selection.worker} in attempt {attempt} of {job} is gone; {hint}"
        )
    return None


def _check_range(selection: Selection, newest: int | None, status: Object, job: str) -> None:
    if selection.attempt is not None and (newest is None or selection.attempt > newest):
        raise CliError(
            f"{job} has no attempt {selection.attempt}; the newest is {newest or 'none'}"
        )
    workers = status.get("workers", {}).get("desired")
    if workers is not None and selection.worker >= workers:
        raise CliError(f"{job} has no worker {selection.worker}; allowed are 0 to {workers - 1}")


def state(pod: Object) -> str:
    """Return the state of the trainer container: `waiting: REASON`, `running` or `ended`."""
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
