"""Where the containers of a pod stand that an earlier agent has started."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node import record
from finetune_local.node.record import Ended
from finetune_local.node.status import State

_KILLED = 137


def states(pod: Object, folder: Path, kind: str) -> Iterator[tuple[str, State]]:
    """Of `initContainers` or `containers`. What was started has ended with that agent.

    The folder knows more than the status: the agent may have been killed between the two.
    """
    key = {"containers": "containerStatuses", "initContainers": "initContainerStatuses"}[kind]
    told = {s["name"]: s.get("state", {}) for s in pod.get("status", {}).get(key, [])}
    for spec in pod["spec"].get(kind, []):
        place = folder / "containers" / spec["name"]
        began = record.started(place)
        if began is None:
            yield spec["name"], _as_told(told.get(spec["name"], {}))
            continue
        policy = spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        end = record.ended(place, began, fall_back_to_logs=policy)
        yield spec["name"], State(started=began, ended=end)


def _as_told(state: Object) -> State:
    """The folder is lost: the status is all there is."""
    if "terminated" in state:
        end = state["terminated"]
        began, finished = _time(end["startedAt"]), _time(end["finishedAt"])
        ended = Ended(end["exitCode"], began, finished, end.get("message", ""))
        return State(started=began, ended=ended)
    if "running" in state:
        began = _time(state["running"]["startedAt"])
        return State(started=began, ended=Ended(_KILLED, began, began, ""))
    return State()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
