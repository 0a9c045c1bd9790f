"""One look at one job against an API server that misbehaves."""

import pytest

from finetune_api.base import Object
from finetune_operator.queue import RetryError
from tests.operator.simulator.api import FAULTS, Api, BeforeResponse
from tests.operator.simulator.events import Config, Event
from tests.operator.simulator.world import KEY, World


def armed(*faults: str) -> World:
    """A new job, and what happens to the first calls of the operator."""
    world = World(Config())
    for number, name in enumerate(faults, start=1):
        if name:
            world.wire.schedule(number, FAULTS[name])
    return world


async def test_a_conflict_whose_live_read_fails_too_is_tried_again():
    """It ended the operator: the answer to a 409 is a read, which may fail like any other."""
    world = armed("", "", "conflict", "connection refused")
    for _ in range(2):
        with pytest.raises(RetryError):
            await world.controller.reconciler.reconcile(KEY)
    assert world.wire.calls == 4


async def test_a_pod_that_was_in_the_way_and_went_is_created_by_a_retry():
    """Nothing else would tell: the next look would have come with the next event, or never."""
    world = armed("", "", "", "conflict")
    with pytest.raises(RetryError):
        await world.controller.reconciler.reconcile(KEY)
    await world.wait(2)
    assert "a-prepare" in world.store.objects["pods"]


async def test_a_job_that_went_unseen_is_forgotten():
    """A watch that was too old lists what is there and does not tell what went."""
    world = World(Config())
    await world.work()
    world.controller.stalled.add("finetunejobs")
    world.store.delete("finetunejobs", "a", {})
    world.controller.relist("finetunejobs")
    assert world.controller.jobs.get(KEY)
    world.nodes.round()
    await world.work()
    assert world.controller.jobs.get(KEY) is None
    assert not world.controller.failures


async def test_a_late_answer_about_the_job_before_does_not_hide_the_new_one():
    """Deleted and made again while a status write was under way: its answer is of the old job."""
    world = World(Config())
    world.wire.schedule(3, BeforeResponse(Event("delete job", True)))
    await world.controller.reconciler.reconcile(KEY)
    assert world.job
    assert world.controller.jobs.uid(KEY) == world.job["metadata"]["uid"]


async def test_pods_are_listed_only_once_there_can_be_a_gang(monkeypatch):
    """A server looks through all pods of a namespace to find those of one job."""
    world, listed = World(Config()), []
    original = Api.list

    async def watched(self: Api, path: str, **query: str) -> tuple[list[Object], str]:
        listed.append(world.job["status"].get("attempt", 0))
        return await original(self, path, **query)

    monkeypatch.setattr(Api, "list", watched)
    await world.work()
    assert "a-prepare" in world.store.objects["pods"]
    await world.run_to_the_end()
    assert world.job["status"]["phase"] == "Succeeded"
    assert listed
    assert 0 not in listed
