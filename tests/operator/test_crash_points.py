"""The operator dies before and after each of its API calls, and every job ends as if it had not.

It also survives calls that are not answered, whether they take effect, do not, or do so late.

The API server is real and the pods are scripted. `tests/operator/simulator` checks the same in
thousands of histories, against a model of the server.
"""

import asyncio
import functools
import random

import pytest

from finetune_api.base import Object
from finetune_local.cluster import Cluster
from tests.installed import Operator, install
from tests.operator.lives import Life, View, viewed
from tests.operator.stopping import StoppingKube, operate

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
_AT_ONCE = 24  # lives
_SAMPLE = 7  # one of so many calls hangs; all of them together take four minutes


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    return control_plane


_ENDS = {"before": {"after": False}, "after": {"after": True}}
_HANGS = {
    "without effect": {"hangs": True},
    "after its effect": {"hangs": True, "after": True},
    "before its effect": {"hangs": True, "late": True},
}
"""What happens at a call -> fields of StoppingKube."""


async def _live(view: View, namespace: str, stop_at: int = 0, **what: bool):
    """Run one life with its own operator; return the end state and the operator's client."""
    kube = StoppingKube(view.kube, stop_at, **what)
    life = Life(view, namespace)
    operator = asyncio.create_task(operate(view.kube, kube, namespace))
    living = asyncio.create_task(life.live())
    try:
        await asyncio.wait({operator, living}, return_when=asyncio.FIRST_COMPLETED)
        if operator.done():
            operator.result()
        await living
        await _at_rest(kube)
        return life.end_state(), kube
    finally:
        for task in (operator, living):
            task.cancel()
        await asyncio.gather(operator, living, return_exceptions=True)


async def _at_rest(kube: StoppingKube) -> None:
    """Wait until the operator makes no call for half a second."""
    seen = -1
    while seen != len(kube.calls):
        seen = len(kube.calls)
        await asyncio.sleep(0.5)


async def _at_points(view: View, ends: dict[str, dict[str, bool]], every: int) -> None:
    """Run a life for every kind of end at every call, or for each `every`th of these only."""
    name = "-".join(ends).replace(" ", "-")
    expected, undisturbed = await _live(view, f"{name}-never")
    _check_complete(expected)
    slots = asyncio.Semaphore(_AT_ONCE)
    wrong: list[str] = []
    stopped = 0

    async def one(call: int, how: str) -> None:
        nonlocal stopped
        async with slots:
            namespace = f"{how.replace(' ', '-')}-{call}"
            try:
                found, kube = await _live(view, namespace, call, **ends[how])
            except AssertionError as error:
                wrong.append(f"{how}, call {call}: {error}")
                return
        stopped += kube.stopped
        if found != expected:
            wrong.append(f"{how}, call {call}, {kube.calls[call - 1]}: {_diff(expected, found)}")

    # The number of calls varies, because events may be batched or not.
    calls = range(1, len(undisturbed.calls) + 1)
    points = [(call, how) for call in calls for how in ends][::every]
    await asyncio.gather(*(one(*point) for point in points))
    assert not wrong, f"{len(wrong)} of {len(points)} lives:\n" + "\n".join(sorted(wrong))
    assert stopped > 0.9 * len(points)


def _check_complete(end: Object) -> None:
    assert end["phase"] == "Succeeded"
    assert [a["outcome"] for a in end["attempts"]] == ["Failed", "Suspended", "Succeeded"]
    assert (end["restarts"], end["estimated"], end["addsUp"]) == (1, False, True)


def _diff(expected: Object, found: Object) -> str:
    keys = [key for key in expected if expected[key] != found[key]]
    return "; ".join(f"{key} {found[key]} instead of {expected[key]}" for key in keys)


@pytest.mark.timeout(600)
def test_an_operator_that_dies_at_any_call_leaves_no_trace(api):
    asyncio.run(viewed(api, functools.partial(_at_points, ends=_ENDS, every=1)))


@pytest.mark.timeout(600)
def test_a_call_that_the_api_server_does_not_answer_leaves_no_trace(api):
    """The server hangs at a call until the client gives up."""
    asyncio.run(viewed(api, functools.partial(_at_points, ends=_HANGS, every=_SAMPLE)))


@pytest.mark.timeout(600)
def test_an_operator_that_is_killed_at_random_moments_leaves_no_trace(api, tmp_path):
    """Kill the real process with SIGKILL; it has the rights of its service account."""
    chance = random.Random(1)
    operator = Operator(api, tmp_path / "operator.log")

    async def story(view: View) -> None:
        lives = [Life(view, f"killed-{number}") for number in range(6)]
        living = asyncio.gather(*(life.live() for life in lives))
        kills = 0
        while not living.done():
            operator.start()
            # The operator needs a second to start, and should be killed while it works.
            await asyncio.wait({living}, timeout=chance.uniform(1.2, 2.5) if kills < 8 else 200)
            operator.kill()
            kills += 1
        await living
        assert kills > 3
        for life in lives:
            _check_complete(life.end_state())

    asyncio.run(viewed(api, story))
