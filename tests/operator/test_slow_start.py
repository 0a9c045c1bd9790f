"""How many requests a gang costs whose pods the API server does not admit."""

from typing import Any

import pytest

from finetune_api.base import Object
from finetune_client.errors import ApiError
from tests.operator.simulator.api import FAULTS, Api, Fault
from tests.operator.simulator.events import Config, Event
from tests.operator.simulator.store import PODS
from tests.operator.simulator.world import World

GANG = 300


class Creates(list[str]):
    """The names of the pods that the operator tries to create, in order."""

    quota: int | None = None  # set once the quota was checked and the first pod is created


@pytest.fixture
def creates(monkeypatch) -> Creates:
    sent, original = Creates(), Api.create

    async def watched(self: Api, path: str, body: Object, **query: str) -> None:
        if path.endswith("/pods"):
            sent.append(body["metadata"]["name"])
            if sent.quota is not None and self._store.quota is None:
                self._store.quota, self._store.quota_set = sent.quota, self._store.version + 1
        await original(self, path, body, **query)

    monkeypatch.setattr(Api, "create", watched)
    return sent


async def _prepared(**changes: Any) -> World:
    """Return a world whose prepare pod has ended and whose gang is created next."""
    world = World(Config(replicas=GANG, **changes))
    await world.work()
    world.apply(Event("go"))
    world.nodes.round()
    return world


async def test_a_gang_beyond_its_quota_costs_few_requests(creates):
    world = await _prepared()
    creates.quota = 12
    creates.clear()
    await world.wait(60)
    assert len(world.store.objects[PODS]) - 1 <= 12
    assert len(creates) < 40
    status = world.job["status"]
    assert "exceeded quota" in status["message"]
    creates.clear()
    await world.wait(600)
    assert len(creates) < 30


async def test_events_of_pods_do_not_shorten_the_delay(creates):
    """The pods that were created are scheduled meanwhile, and each of them is an event."""
    world = await _prepared()
    creates.quota = 4
    creates.clear()
    for _ in range(20):
        await world.wait(1)
        for pod in world.nodes.pods():
            world.nodes.unschedulable(pod)
        await world.work()
    assert len(creates) < 25


async def test_nothing_is_created_behind_a_failed_request(creates):
    world = await _prepared()
    creates.clear()
    number = world.wire.calls
    for call in range(GANG + 30, 3 * GANG):  # after the names of the pods were checked
        world.wire.schedule(call, FAULTS["server error"])
    await world.work()
    assert 0 < len(creates) < 60
    assert world.wire.calls - number < GANG + 60


async def test_the_edit_of_a_job_ends_the_delay(creates):
    world = await _prepared()
    creates.quota = 4
    await world.wait(100)
    creates.clear()
    creates.quota = world.store.quota = None
    world.edit({"runPolicy": {"maxRestarts": 7}})
    await world.work()
    assert len(creates) > GANG - 8


async def test_a_gang_is_created_at_once_when_nothing_is_refused(creates):
    world = await _prepared()
    creates.clear()
    await world.work()
    assert sorted(set(creates)) == sorted(creates)
    assert len(creates) == GANG


WEBHOOK = 'failed calling webhook "pods.example.com": connection refused'
CODES = (400, 403, 404, 405, 413, 422, 429, 500, 502, 503, 504, 507)


def _failing(code: int) -> Fault:
    return Fault("webhook", lambda: ApiError(code, "Reason", WEBHOOK))


class _Failing:
    """Makes the operator fail certain requests."""

    def __init__(self, patch: pytest.MonkeyPatch, verb: str, code: int | None, part: str) -> None:
        self.active, self.sent = True, 0
        for name in (verb, "post") if verb == "create" else (verb,):
            self._patch(patch, name, code, part)

    def _patch(self, patch: pytest.MonkeyPatch, verb: str, code: int | None, part: str) -> None:
        original = getattr(Api, verb)

        async def fail(api: Api, path: str, *args: Any, **query: Any) -> Any:
            if self.active and part in path:
                self.sent += 1
                raise ApiError(code, "Reason", WEBHOOK) if code else TimeoutError
            return await original(api, path, *args, **query)

        patch.setattr(Api, verb, fail)


def _events(world: World) -> list[tuple[str, str]]:
    found = world.store.objects["events"].values()
    return [(event["reason"], event["message"]) for event in found]


@pytest.mark.parametrize("code", CODES)
async def test_a_webhook_that_fails_is_shown_and_the_job_recovers(monkeypatch, code):
    failing = _Failing(monkeypatch, "create", code, "/pods")
    world = World(Config())
    await world.work()
    await world.wait(20)
    status = world.job["status"]
    accepted = next(c for c in status["conditions"] if c["type"] == "Accepted")
    assert accepted["status"] == "False"
    assert WEBHOOK in accepted["message"]
    assert WEBHOOK in status["message"]
    assert status["reason"] == accepted["reason"]
    assert any(reason == accepted["reason"] and WEBHOOK in text for reason, text in _events(world))
    failing.sent = 0
    await world.wait(60)
    assert failing.sent <= 12
    failing.active = False
    await world.run_to_the_end()
    assert world.job["status"]["phase"] == "Succeeded"
    assert world.condition("Accepted") == "True"


@pytest.mark.parametrize(("verb", "part"), [("delete", "/pods/"), ("get", "/finetunejobs/")])
@pytest.mark.parametrize("code", [None, 403, 500])
async def test_other_requests_that_fail_are_shown(monkeypatch, verb, part, code):
    world = World(Config())
    await world.work()
    for _ in range(3):
        await world.step(Event("go"))
    failing = _Failing(monkeypatch, verb, code, part)
    world.edit({"suspend": True})
    await world.work()
    await world.wait(40)
    status = world.job["status"]
    text = WEBHOOK if code else "does not answer"
    assert status["reason"] == "RequestFailed"
    assert text in status["message"]
    assert any(reason == "RequestFailed" and text in event for reason, event in _events(world))
    assert failing.sent < 20
    failing.active = False
    await world.run_to_the_end()
    assert world.condition("Suspended") == "True"
    assert world.condition("Accepted") == "True"


async def test_a_status_that_cannot_be_written_is_an_event(monkeypatch):
    failing = _Failing(monkeypatch, "patch", 500, "/status")
    world = World(Config())
    await world.work()
    await world.wait(30)
    assert "status" not in world.job
    found = [text for reason, text in _events(world) if reason == "RequestFailed"]
    assert len(found) == 1
    assert WEBHOOK in found[0]
    assert failing.sent < 20
    failing.active = False
    await world.run_to_the_end()
    assert world.job["status"]["phase"] == "Succeeded"


async def test_a_failure_that_passes_with_one_retry_is_not_shown(monkeypatch):
    failing = _Failing(monkeypatch, "create", 500, "/pods")
    world = World(Config())
    await world.work()
    failing.active = False
    await world.wait(5)
    assert failing.sent == 1
    assert not [reason for reason, _ in _events(world) if reason == "RequestFailed"]
    assert world.condition("Accepted") == "True"


async def test_the_cost_of_a_long_start_is_written_once_a_minute():
    """One worker holds its devices while the image of the other one cannot be pulled."""
    world = World(Config(pulls=(0, None), policy=(("gangStartTimeoutSeconds", 86_400),)))
    await world.work()
    for _ in range(3):
        await world.step(Event("go"))
    await world.wait(30)
    for _ in range(10):
        writes = world.wire.writes
        await world.wait(60)
        assert world.wire.writes - writes <= 1
        held = 2 * 2 * world.clock.seconds
        assert world.job["status"]["usage"]["deviceSeconds"] > held - 2 * 2 * 70
