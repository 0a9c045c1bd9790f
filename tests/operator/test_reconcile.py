"""Reconciling one job against an API server that fails requests."""

import pytest

from finetune_api.base import Object
from finetune_operator.queue import RetryError
from tests.operator.simulator.api import FAULTS, Api, BeforeResponse
from tests.operator.simulator.events import Config, Event
from tests.operator.simulator.world import KEY, World


def world_with(*faults: str) -> World:
    """A world with a new job, and the faults of the operator's first calls ("": none)."""
    world = World(Config())
    for number, name in enumerate(faults, start=1):
        if name:
            world.wire.schedule(number, FAULTS[name])
    return world


async def test_a_conflict_whose_live_read_fails_too_is_retried():
    """This once ended the operator: a 409 is followed by a read, which can fail as well."""
    world = world_with("", "", "", "", "conflict", "connection refused")
    for _ in range(2):
        with pytest.raises(RetryError):
            await world.controller.reconciler.reconcile(KEY)
    assert world.wire.calls == 6


async def test_a_pod_whose_name_was_taken_for_a_moment_is_created_by_a_retry():
    """No event would trigger another attempt: the pod that had the name is already gone."""
    world = world_with("", "", "", "", "", "conflict")
    with pytest.raises(RetryError):
        await world.controller.reconciler.reconcile(KEY)
    await world.wait(2)
    assert "a-prepare" in world.store.objects["pods"]


async def test_a_job_whose_deletion_was_missed_is_forgotten():
    """A watch that was too old starts again from a list, which does not contain deletions."""
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


async def test_a_late_response_about_the_previous_job_does_not_hide_the_new_one():
    """If a job is replaced during a status write, the response is about the old job."""
    world = World(Config())
    world.wire.schedule(5, BeforeResponse(Event("delete job", True)))
    await world.controller.reconciler.reconcile(KEY)
    assert world.job
    assert world.controller.jobs.uid(KEY) == world.job["metadata"]["uid"]


async def test_pods_are_listed_only_once_there_can_be_a_gang(monkeypatch):
    """To find the pods of one job, the server looks through all pods of the namespace."""
    world, listed = World(Config()), []
    original = Api.list

    async def watched(self: Api, path: str, **query: str) -> tuple[list[Object], str]:
        if path.endswith("/pods"):
            listed.append(world.job["status"].get("attempt", 0))
        return await original(self, path, **query)

    monkeypatch.setattr(Api, "list", watched)
    await world.work()
    assert "a-prepare" in world.store.objects["pods"]
    await world.run_to_the_end()
    assert world.job["status"]["phase"] == "Succeeded"
    assert listed
    assert 0 not in listed


async def test_a_pod_that_is_gone_before_the_watch_reports_its_end_is_charged_exactly():
    """A read can be ahead of the watch, which will report how the pod ended."""
    world = World(Config())
    for _ in range(3):
        await world.step(Event("go"))
    world.controller.stalled.add("pods")
    pod = world.store.objects["pods"]["a-1-1"]
    world.store.delete("pods", "a-1-1", {})
    world.nodes.stop(pod)
    assert "a-1-1" not in world.store.objects["pods"]
    world.edit({"suspend": True})
    await world.work()
    world.clock.seconds += 1
    world.controller.stalled.discard("pods")
    await world.work()
    await world.run_to_the_end()
    assert world.job
    (attempt,) = world.job["status"]["attempts"]
    assert attempt["outcome"] == "Released"
    assert not attempt.get("estimated")
