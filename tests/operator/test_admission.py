"""A gang begins only where all of it is admitted: names, quotas, and a dry run of a worker."""

import logging
from typing import Any

import pytest

from finetune_api.base import Object
from finetune_client.errors import ApiError
from finetune_operator.plan.reserved import about_to_exist
from tests.operator.simulator.api import Api
from tests.operator.simulator.events import Config, Event
from tests.operator.simulator.store import JOBS, PODS
from tests.operator.simulator.world import World
from tests.operator.worlds import at, committed, running, spec_of, suspended, worker


def pods(world: World, job: str) -> set[str]:
    found = world.store.objects[PODS]
    return {name for name in found if name.startswith(f"{job}-") and not name.endswith("prepare")}


def status(world: World, job: str = "a") -> Object:
    found: Object = world.store.objects[JOBS][job]["status"]
    return found


def second(world: World, replicas: int, name: str = "b") -> None:
    spec = spec_of(name, workers={"replicas": replicas, "devicesPerWorker": 1})
    world.store.create(JOBS, {"metadata": {"name": name, "namespace": "default"}, "spec": spec})


async def step(world: World, times: int = 1) -> None:
    """Let the nodes act and the operator react, without the checks for a single job."""
    for _ in range(times):
        world.apply(Event("go"))
        await world.work()


class Services:
    """Whether creating a Service fails, so that an attempt is committed and has no pods."""

    down = False


@pytest.fixture
def services(monkeypatch) -> Services:
    found, original = Services(), Api.create

    async def fail(self: Api, path: str, body: Object, **query: str) -> None:
        if found.down and path.endswith("/services"):
            raise TimeoutError
        await original(self, path, body, **query)

    monkeypatch.setattr(Api, "create", fail)
    return found


@pytest.fixture
def several_jobs(monkeypatch) -> None:
    """The invariants of the simulator are about a single job."""
    monkeypatch.setattr(World, "_check", lambda *_: None)


def foreign(world: World, name: str) -> None:
    """Create a pod of another owner, which does not start."""
    body = {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c"}]},
    }
    created = world.store.create(PODS, body)
    world.nodes.held.add(created["metadata"]["uid"])


@pytest.mark.usefixtures("several_jobs")
async def test_a_gang_that_does_not_fit_leaves_the_room_to_one_that_does():
    """The job of three took a freed place from the job of two, and neither ran."""
    world = World(Config(replicas=3, devices=1))
    second(world, 2)
    await step(world, 2)
    world.store.quota = 2
    await step(world, 3)
    assert pods(world, "b") == {"b-1-0", "b-1-1"}
    assert status(world, "b")["phase"] == "Running"
    assert pods(world, "a") == set()
    found = status(world)
    assert "attempt" not in found
    assert found["reason"] == "QuotaExceeded"
    for part in ("all 3 pods", "exceeded quota: pods", "requested: pods=3", "limited: pods=2"):
        assert part in found["message"]
    world.store.quota = 5
    await world.wait(12)
    await step(world)
    assert len(pods(world, "a")) == 3


@pytest.mark.usefixtures("several_jobs")
async def test_two_gangs_that_are_committed_together_do_not_share_a_quota(services):
    """Both are checked before the first pod exists; the one that was committed first begins."""
    world = World(Config(replicas=3, devices=1))
    second(world, 2)
    await step(world, 2)
    services.down = True
    await step(world)
    assert (status(world)["attempt"], status(world, "b")["attempt"]) == (1, 1)
    assert pods(world, "a") | pods(world, "b") == set()
    world.store.quota = 4
    services.down = False
    await world.wait(20)
    sizes = len(pods(world, "a")), len(pods(world, "b"))
    assert sizes in ((3, 0), (0, 2))
    waiting = status(world, "a" if sizes[0] == 0 else "b")
    assert waiting["reason"] == "QuotaExceeded"
    assert "limited: pods=4; waiting until the quota has room" in waiting["message"]


async def test_a_gang_that_never_fits_is_shown_before_it_is_prepared():
    world = World(Config(replicas=3, devices=1))
    world.store.quota = 2
    await world.work()
    assert world.store.objects[PODS] == {}
    assert status(world)["reason"] == "QuotaExceeded"
    assert "raise the quota or use a smaller gang" in status(world)["message"]


@pytest.mark.usefixtures("several_jobs")
async def test_a_quota_that_is_used_up_does_not_delay_the_preparation():
    world = World(Config())
    await step(world, 3)
    assert len(pods(world, "a")) == 2
    second(world, 2)
    world.store.quota = 3
    await step(world, 1)
    assert "b-prepare" in world.store.objects[PODS]


async def test_without_the_right_gangs_begin_unchecked(monkeypatch, caplog):
    original = Api.list

    async def forbidden(self: Api, path: str, **query: str) -> Any:
        if path.endswith("resourcequotas"):
            raise ApiError(403, "Forbidden", "cannot list resource resourcequotas")
        return await original(self, path, **query)

    monkeypatch.setattr(Api, "list", forbidden)
    world = World(Config())
    caplog.set_level(logging.WARNING)
    await world.work()
    await step(world, 3)
    assert status(world)["phase"] == "Running"
    found = [r for r in caplog.records if "without a check of the quotas" in r.message]
    assert len(found) == 1


async def test_a_webhook_that_cannot_be_asked_by_a_dry_run_keeps_no_job(monkeypatch):
    async def refuse(*_: Any, **__: Any) -> Object:
        text = 'admission webhook "w.example.com" does not support dry run'
        raise ApiError(400, "BadRequest", text)

    monkeypatch.setattr(Api, "post", refuse)
    world = World(Config())
    await world.work()
    await step(world, 3)
    assert status(world)["phase"] == "Running"


MISSING_CLASS = 'pods "a-1-0" is forbidden: no PriorityClass with name urgent was found'
REFUSED = {
    "priority class": (ApiError(403, "Forbidden", MISSING_CLASS), "Forbidden"),
    "pod security": (ApiError(403, "Forbidden", "violates PodSecurity"), "Forbidden"),
    "template": (ApiError(422, "Invalid", "spec.tolerations[0]: Invalid value"), "InvalidTemplate"),
    "unknown field": (ApiError(400, "BadRequest", 'unknown field "spec.x"'), "InvalidTemplate"),
}


@pytest.mark.parametrize(("error", "reason"), REFUSED.values(), ids=REFUSED)
async def test_a_worker_that_is_refused_is_shown_before_anything_is_prepared(
    monkeypatch, error, reason
):
    asked: list[str] = []
    original = Api.post

    async def refuse(self: Api, path: str, body: Object, **query: str) -> Object:
        asked.append(body["metadata"]["name"])
        if body["metadata"]["name"] == "a-1-0":
            raise error
        return await original(self, path, body, **query)

    monkeypatch.setattr(Api, "post", refuse)
    world = World(Config())
    await world.work()
    assert world.store.objects[PODS] == {}
    assert status(world)["reason"] == reason
    assert error.message in status(world)["message"]
    assert asked == ["a-1-0"]
    monkeypatch.setattr(Api, "post", original)
    await world.wait(12)
    assert "a-prepare" in world.store.objects[PODS]


async def test_no_pod_is_created_while_one_of_the_names_is_taken():
    world = World(Config())
    await world.work()
    await step(world, 3)
    world.apply(Event("lose node", 1))  # of a-1-1
    world.apply(Event("delete job", True))
    await step(world, 5)
    old = world.store.objects[PODS]["a-1-1"]
    assert "deletionTimestamp" in old["metadata"]
    assert pods(world, "a") == {"a-1-1"}
    found = status(world)
    assert found["reason"] == "WaitingForOldPods"
    assert "Pod a-1-1 of an earlier job on node node-of-a-1-1" in found["message"]
    assert "attempt" not in found
    world.apply(Event("nodes recover"))
    await step(world)
    await world.wait(12)
    assert pods(world, "a") == {"a-1-0", "a-1-1"}


async def test_a_pod_of_another_owner_is_named_before_any_pod_is_created():
    world = World(Config())
    foreign(world, "a-1-1")
    await world.work()
    await step(world, 3)
    assert pods(world, "a") == {"a-1-1"}
    assert status(world)["reason"] == "NameTaken"
    assert "attempt" not in status(world)


async def test_a_name_that_is_taken_after_the_commit_keeps_the_gang_waiting(services):
    world = World(Config())
    await world.work()
    services.down = True
    await step(world, 2)
    assert status(world)["attempt"] == 1
    foreign(world, "a-1-1")
    services.down = False
    await world.wait(5)
    assert pods(world, "a") == {"a-1-1"}
    assert status(world)["reason"] == "NameTaken"


def test_which_gangs_are_about_to_exist():
    ours, other = committed(), committed()
    later = other.status.replace(
        attempts=[other.status.attempts[-1].replace(start_time=at(60))],
    )
    demand = about_to_exist(other, (), before=suspended(ours))
    assert demand is None or demand.count == 2
    new = ours.with_status(ours.status.replace(attempts=[], attempt=None))
    found = about_to_exist(other, (worker(0),), before=new)
    assert found
    assert found.count == 1
    assert about_to_exist(other, (worker(0), worker(1)), before=new) is None
    assert about_to_exist(running(), (worker(0), worker(1)), before=new) is None
    assert about_to_exist(other.with_status(later), (), before=ours) is None
    earlier = about_to_exist(ours, (), before=other.with_status(later))
    assert earlier
    assert earlier.count == 2
