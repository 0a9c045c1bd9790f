"""When a container that has ended is started again (pure functions)."""

from finetune_api.base import Object
from finetune_local.node.status import State

_FIRST_DELAY, _LONGEST_DELAY = 10.0, 300.0  # s, as in the kubelet
_STABLE = 600.0  # s after which the delay begins anew


def starts_again(pod: Object, state: State, *, init: bool = False) -> bool:
    """Return whether the restartPolicy of the pod wants another start of an ended container."""
    policy = pod["spec"].get("restartPolicy", "Always")
    assert state.ended is not None
    failed = state.ended.exit_code != 0
    return (policy == "Always" and not init) or (policy != "Never" and failed)


def delay(state: State) -> float:
    """Return the seconds before the next start: none, 10 s, and then twice as long each time."""
    assert state.ended is not None
    if state.restarts == 0:
        return 0.0
    if (state.ended.finished - state.ended.started).total_seconds() >= _STABLE:
        return _FIRST_DELAY
    return float(min(_FIRST_DELAY * 2 ** (state.restarts - 1), _LONGEST_DELAY))
