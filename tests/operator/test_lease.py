"""Leader election: its rules, and replicas on the real API server."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from finetune_client.api import Api
from finetune_local.cluster import Cluster
from finetune_operator.lease import MARGIN, Elector, LeaseLostError, Observation, held_by
from finetune_operator.settings import LeaseSettings

WALL = datetime(2026, 1, 1, tzinfo=UTC)
HELD = {"holderIdentity": "other", "leaseDurationSeconds": 15}
FREE = {
    "it has no holder": ({}, 0, True),
    "it was released": ({**HELD, "holderIdentity": ""}, 0, True),
    "it is ours": ({**HELD, "holderIdentity": "me"}, 0, True),
    "just observed": (HELD, 0, False),
    "unchanged, not for long enough": (HELD, 14.9, False),
    "unchanged for its duration": (HELD, 15, True),
    "its own duration counts, not ours": ({**HELD, "leaseDurationSeconds": 60}, 30, False),
    "without a duration ours counts": ({"holderIdentity": "other"}, 10, True),
}


@pytest.mark.parametrize(("spec", "seconds", "expected"), FREE.values(), ids=FREE.keys())
def test_when_a_lease_may_be_taken(spec, seconds, expected):
    assert Observation(spec, 100.0).free("me", 100.0 + seconds, 10) is expected


def test_each_observed_renewal_restarts_the_wait():
    observed = Observation({}, 0).updated(HELD, 10)
    assert observed.updated(HELD, 20).since == 10
    assert observed.updated({**HELD, "renewTime": "later"}, 20).since == 20


def test_a_deleted_lease_still_protects_its_holder():
    observed = Observation({}, 0).updated(HELD, 10).updated(None, 20)
    assert not observed.free("me", 24, 15)
    assert observed.free("me", 25, 15)


def test_the_times_in_a_lease_have_no_effect():
    for skew in (timedelta(hours=-5), timedelta(hours=5)):
        spec = held_by({}, "other", 15, WALL + skew)
        observed = Observation(spec, 100.0)
        assert (observed.free("me", 114, 15), observed.free("me", 115, 15)) == (False, True)


def test_transitions_count_changes_of_the_holder():
    first = held_by({}, "a", 15, WALL)
    again = held_by(first, "a", 15, WALL + timedelta(seconds=5))
    other = held_by(again, "b", 15, WALL + timedelta(seconds=60))
    assert [spec["leaseTransitions"] for spec in (first, again, other)] == [0, 0, 1]
    assert again["acquireTime"] == first["acquireTime"] != other["acquireTime"]
    assert again["renewTime"] != first["renewTime"]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def configuration(configuration, control_plane):
    control_plane.kubectl("delete", "lease", "test", "--ignore-not-found")
    return configuration


def holder(api: Cluster) -> str:
    return api.kubectl("get", "lease", "test", "-o", "jsonpath={.spec.holderIdentity}")


@pytest.mark.cluster
@pytest.mark.slow
async def test_one_of_two_replicas_leads_until_it_releases_the_lease(control_plane, configuration):
    settings = LeaseSettings("default", "test", 10)
    kube = Api(configuration)
    first, second = Elector(kube, settings), Elector(kube, settings)
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(2.5)
    assert not waiting.done()
    assert holder(control_plane) == first.identity
    assert first.identity in second.describe()
    await first.release()
    with pytest.raises(LeaseLostError):
        first.guard()
    await asyncio.wait_for(waiting, 5)
    assert holder(control_plane) == second.identity
    await second.release()
    assert holder(control_plane) == ""
    await kube.close()


@pytest.mark.cluster
@pytest.mark.slow
async def test_a_leader_notices_that_another_replica_took_the_lease_and_leaves_it(
    control_plane, configuration
):
    kube = Api(configuration)
    elector = Elector(kube, LeaseSettings("default", "test", 10))
    await elector.acquire()
    taken = json.dumps({"spec": {"holderIdentity": "intruder"}})
    control_plane.kubectl("patch", "lease", "test", "--type=merge", "-p", taken)
    with pytest.raises(LeaseLostError, match="taken"):
        await asyncio.wait_for(elector.renew(), 8)
    await elector.release()
    assert holder(control_plane) == "intruder"
    await kube.close()


@pytest.mark.cluster
@pytest.mark.slow
async def test_a_leader_that_cannot_renew_stops_before_its_lease_ends(configuration, proxy):
    kube = Api(configuration)
    elector = Elector(kube, LeaseSettings("default", "test", 10))
    await elector.acquire()
    with proxy.fault(cut=True), pytest.raises(LeaseLostError):
        await asyncio.wait_for(elector.renew(), 10)
    assert elector.left > 0
    await kube.close()


@pytest.mark.cluster
@pytest.mark.slow
async def test_one_slow_response_does_not_lose_the_lease(configuration, proxy):
    kube = Api(configuration)
    elector = Elector(kube, LeaseSettings("default", "test", 10))
    await elector.acquire()
    renewing = asyncio.create_task(elector.renew())
    with proxy.fault(path="/leases", delay=60, times=1) as slow:
        await asyncio.sleep(7)
    assert slow.met == 1
    assert not renewing.done()
    assert elector.left > MARGIN
    renewing.cancel()
    await kube.close()


@pytest.mark.cluster
@pytest.mark.slow
async def test_nothing_is_sent_when_little_of_the_lease_is_left(configuration, proxy):
    clock = Clock()
    lease_kube = Api(configuration)
    elector = Elector(lease_kube, LeaseSettings("default", "test", 15), clock)
    kube = Api(configuration, guard=elector.guard)
    pods = "/api/v1/namespaces/default/pods"
    with pytest.raises(LeaseLostError):
        await kube.create(pods, {})
    await elector.acquire()
    clock.now += 15 - MARGIN
    assert elector.guard() < MARGIN
    clock.now += 0.1
    before = len(proxy.seen)
    for write in (kube.create(pods, {}), kube.patch(f"{pods}/a", {}), kube.delete(f"{pods}/a", {})):
        with pytest.raises(LeaseLostError, match=r"4\.9 s are left"):
            await write
    assert len(proxy.seen) == before
    await kube.list(pods)  # Reads are always allowed.
    await kube.close()
    await lease_kube.close()


@pytest.mark.cluster
@pytest.mark.slow
async def test_nothing_is_sent_when_the_lease_ended_while_the_connection_was_opened(
    configuration, proxy
):
    class Paused:
        """A guard that allows the first call, before the connection, and refuses the second."""

        left = iter((8.0, 4.0))

        def __call__(self) -> float:
            if (left := next(self.left)) < MARGIN:
                raise LeaseLostError("paused while connecting")
            return left

    kube = Api(configuration, guard=Paused())
    with pytest.raises(LeaseLostError, match="while connecting"):
        await kube.create("/api/v1/namespaces/default/pods", {})
    assert not proxy.seen
    await kube.list("/api/v1/namespaces/default/pods")
    await kube.close()


@pytest.mark.cluster
@pytest.mark.slow
async def test_a_write_ends_before_the_lease_can(configuration, proxy):
    kube = Api(configuration, guard=lambda: 0.5)
    with proxy.fault(path="/pods", delay=20), pytest.raises(TimeoutError):
        await asyncio.wait_for(kube.create("/api/v1/namespaces/default/pods", {}), 15)
    await kube.close()
