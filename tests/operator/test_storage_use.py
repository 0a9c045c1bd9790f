"""Two jobs on one storage folder: the second waits, and is not prepared."""

import json
from dataclasses import replace

import pytest

from finetune_api.base import Object
from finetune_api.run import RunConfig
from finetune_operator.plan import run_config, storage_use
from finetune_operator.plan.storage_use import StorageUse
from finetune_operator.storage_index import StorageIndex
from tests.operator.simulator.events import Config, Event
from tests.operator.simulator.store import JOBS, PODS
from tests.operator.simulator.world import World
from tests.operator.worlds import make_job, spec_of


def use(name: str, path: str = "runs/a", **changes: object) -> StorageUse:
    found = StorageUse(name, "default", name, "w", path, "2026-01-01T00:00:00Z", begun=False)
    return replace(found, **changes)


MINE = use("m")
AHEAD = {
    "older": use("x", created="2025-12-31T23:59:59Z"),
    "of the same second, with a smaller uid": use("b"),
    "younger, with an attempt": use("x", created="2026-01-02T00:00:00Z", begun=True),
    "the folder above": use("b", "runs"),
    "a folder below": use("b", "runs/a/b"),
}
BEHIND = {
    "younger": use("a", created="2026-01-01T00:00:01Z"),
    "of the same second, with a greater uid": use("z"),
    "another folder": use("a", "runs/ab"),
    "a folder beside it": use("a", "runs/b"),
    "another claim": use("a", claim="v"),
}


@pytest.mark.parametrize("other", AHEAD.values(), ids=AHEAD)
def test_a_job_waits_for(other):
    found = storage_use.refusal(make_job(), MINE, [other])
    assert found
    assert found.reason == "StorageInUse"
    assert "checkpoints.storage pvc://w/runs/a" in found.message
    assert f"job {other.name}, which has not ended" in found.message
    assert storage_use.refusal(make_job(), other, [MINE]) is None


@pytest.mark.parametrize("other", BEHIND.values(), ids=BEHIND)
def test_a_job_does_not_wait_for(other):
    assert storage_use.refusal(make_job(), MINE, [other]) is None


def test_the_first_of_several_is_named():
    found = storage_use.refusal(make_job(), MINE, [use("b"), use("c", begun=True), use("a")])
    assert found
    assert "job c," in found.message


def item(name: str, storage: object = "pvc://w/runs/a", **status: object) -> Object:
    metadata = {"name": name, "namespace": "default", "uid": name, "creationTimestamp": "2026"}
    return {"metadata": metadata, "spec": {"checkpoints": {"storage": storage}}, "status": status}


def test_a_job_uses_its_storage_until_it_has_ended():
    for phase in ("Pending", "Preparing", "Running", "Restarting", "Suspended"):
        expected = use("a", created="2026", begun=True)
        assert StorageUse.of(item("a", phase=phase, attempt=1)) == expected
    for phase in ("Succeeded", "Failed"):
        assert StorageUse.of(item("a", phase=phase)) is None


@pytest.mark.parametrize("storage", [None, 7, "", "w/runs", "pvc://w", "pvc://w/../x", ["a"]])
def test_an_address_that_is_not_valid_uses_nothing(storage):
    assert StorageUse.of(item("a", storage)) is None


def test_the_index_finds_the_jobs_of_a_claim_and_of_a_path():
    index = StorageIndex()
    for found in (MINE, use("n", "runs/a/b"), use("o", "runs/c"), use("p", claim="v")):
        index.put(found.uid, found)
    other = use("q", namespace="other", created="2025")
    index.put("q", other)
    assert [u.uid for u in index.beside(MINE)] == ["n"]
    assert index.owners(MINE) == ("p", "q")
    index.put("p", None)
    index.put("n", use("n", "runs/z"))
    assert index.beside(MINE) == ()
    assert index.owners(MINE) == ("q",)
    for uid in ("m", "n", "o", "q"):
        index.put(uid, None)
    assert index == StorageIndex()


def test_a_pod_gets_the_unfinished_owners_and_not_more_than_a_few():
    job = replace(make_job(), unfinished_owners=("u1", "u2"))
    assert run_config.for_prepare(job).unfinished_owners == ["u1", "u2"]
    assert run_config.for_prepare(make_job()).unfinished_owners is None
    index = StorageIndex()
    for number in range(1000):
        index.put(f"{number}", use(f"{number}", namespace="other"))
    index.put("near", use("near"))
    owners = index.owners(MINE)
    assert (owners[0], len(owners)) == ("near", 256)


def _second(world: World, name: str = "b", **changes: object) -> None:
    spec = spec_of(name, **{"checkpoints": {"storage": "pvc://w/runs/a/inner"}} | changes)
    world.store.create(JOBS, {"metadata": {"name": name, "namespace": "default"}, "spec": spec})


async def test_a_second_job_waits_until_the_first_one_has_ended():
    world = World(Config())
    await world.work()
    _second(world)
    await world.work()
    job = world.store.objects[JOBS]["b"]
    assert job["status"]["reason"] == "StorageInUse"
    assert "job a," in job["status"]["message"]
    assert "b-prepare" not in world.store.objects[PODS]
    for event in (Event("go"), Event("go"), Event("suspend", True), Event("go")):
        await world.step(event)
    assert world.condition("Suspended") == "True"
    await world.wait(100)
    assert "b-prepare" not in world.store.objects[PODS]
    await world.step(Event("delete job", False))
    await world.wait(20)
    assert "b-prepare" in world.store.objects[PODS]
    config = _config(world.store.objects[PODS]["b-prepare"])
    assert config.unfinished_owners == []


async def test_waiting_costs_no_request():
    world = World(Config())
    await world.work()
    _second(world)
    await world.work()
    calls = world.wire.calls
    await world.wait(300)
    assert world.wire.calls - calls < 10


async def test_an_older_job_that_is_edited_onto_the_folder_waits_for_one_that_has_begun():
    world = World(Config())
    world.store.delete(JOBS, "a", {})
    _second(world, "older", checkpoints={"storage": "pvc://w/runs/other"}, suspend=True)
    world.clock.seconds += 5
    world.create_job()
    await world.work()
    for _ in range(3):
        await world.step(Event("go"))
    assert world.job["status"]["attempt"] == 1
    edit = {"suspend": False, "checkpoints": {"storage": "pvc://w/runs/a"}}
    world.store.patch(JOBS, "older", None, {"spec": edit})
    await world.work()
    assert world.store.objects[JOBS]["older"]["status"]["reason"] == "StorageInUse"


async def test_pods_are_given_the_unfinished_jobs_of_their_path_on_other_claims():
    world = World(Config())
    world.store.create("persistentvolumeclaims", {"metadata": {"name": "v"}})
    _second(world, checkpoints={"storage": "pvc://v/runs/a"})
    await world.work()
    uid = world.store.objects[JOBS]["b"]["metadata"]["uid"]
    assert _config(world.store.objects[PODS]["a-prepare"]).unfinished_owners == [uid]


def _config(pod: Object) -> RunConfig:
    env = pod["spec"]["containers"][0]["env"]
    return RunConfig.model_validate(
        json.loads(next(e["value"] for e in env if e["name"] == "FINETUNE_RUN"))
    )
