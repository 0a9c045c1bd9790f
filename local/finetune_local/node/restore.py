"""Restores the states of containers that an earlier agent started."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node import container_record, restart_policy
from finetune_local.node.container_record import KILLED, Termination
from finetune_local.node.status import State


def states(pod: Object, folder: Path, kind: str) -> Iterator[tuple[str, State]]:
    """Yield the name and state of each of the pod's `initContainers` or `containers`.

    Containers that were started ended with their agent. Their folder is newer than the status,
    because the agent may have been killed before it wrote the status.
    """
    key = {"containers": "containerStatuses", "initContainers": "initContainerStatuses"}[kind]
    statuses = {s["name"]: s for s in pod.get("status", {}).get(key, [])}
    for spec in pod["spec"].get(kind, []):
        record = folder / "containers" / spec["name"]
        started = container_record.start_time(record)
        if started is None:
            yield spec["name"], _from_status(statuses.get(spec["name"], {}).get("state", {}))
            continue
        policy = spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        restarts = statuses.get(spec["name"], {}).get("restartCount", 0)
        end = container_record.termination(record, started, fall_back_to_logs=policy)
        state = State(started=started, ended=end, restarts=restarts)
        if restart_policy.starts_again(pod, state, init=kind == "initContainers"):
            state = State(restarts=restarts + 1, previous=end)
        yield spec["name"], state


def _from_status(state: Object) -> State:
    """Return the state by `containerStatuses[].state`, for a container without a folder."""
    if "terminated" in state:
        end = state["terminated"]
        started, finished = _time(end["startedAt"]), _time(end["finishedAt"])
        ended = Termination(end["exitCode"], started, finished, end.get("message", ""))
        return State(started=started, ended=ended)
    if "running" in state:
        started = _time(state["running"]["startedAt"])
        return State(started=started, ended=Termination(KILLED, started, started, ""))
    return State()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
