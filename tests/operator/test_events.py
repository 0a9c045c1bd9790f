"""The event recorder: nothing waits for it, and its queue is bounded."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.base import Object
from finetune_client.errors import ApiError
from finetune_operator.__main__ import _flush
from finetune_operator.events import Recorder
from finetune_operator.lease import LeaseLostError
from finetune_operator.plan.events import Event
from finetune_operator.queue import RetryError
from tests.operator.simulator.api import FAULTS, Api
from tests.operator.simulator.events import Config
from tests.operator.simulator.world import KEY, World
from tests.operator.worlds import make_job

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Endpoint:
    """Stores events; slow or failing if a test asks for it."""

    def __init__(self, delay: float = 0.0, error: Exception | None = None) -> None:
        self.delay, self.error = delay, error
        self.events: dict[str, Object] = {}
        self.calls: list[str] = []

    async def create(self, path: str, body: Object, **query: str) -> None:
        await self._call("create")
        name = body["metadata"]["name"]
        if name in self.events:
            raise ApiError(409, "AlreadyExists", "it exists")
        self.events[name] = body

    async def patch(self, path: str, body: Object) -> Object:
        await self._call("patch")
        self.events[path.rpartition("/")[2]] |= body
        return body

    async def _call(self, verb: str) -> None:
        self.calls.append(verb)
        await asyncio.sleep(self.delay)
        if self.error:
            raise self.error

    @property
    def messages(self) -> list[str]:
        return [event["message"] for event in self.events.values()]


def record(recorder: Recorder, *messages: str) -> None:
    for number, message in enumerate(messages):
        now = NOW + timedelta(seconds=number)
        recorder.record(make_job(), Event("Normal", "Preparing", message), now)


async def sent_in_background(recorder: Recorder, *messages: str) -> None:
    task = asyncio.create_task(recorder.run())
    record(recorder, *messages)
    await asyncio.sleep(0.05)
    assert not recorder._pending
    task.cancel()


async def test_events_are_sent_in_the_order_in_which_they_were_recorded():
    endpoint = Endpoint()
    await sent_in_background(Recorder(endpoint), "a", "b", "c")
    assert endpoint.messages == ["a", "b", "c"]


async def test_an_event_that_repeats_while_it_waits_is_sent_once_with_its_count():
    endpoint = Endpoint()
    recorder = Recorder(endpoint)
    record(recorder, "a", "a", "a")
    await recorder.flush()
    (event,) = endpoint.events.values()
    assert (event["count"], endpoint.calls) == (3, ["create"])
    assert (event["firstTimestamp"], event["lastTimestamp"]) == (
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:00:02Z",
    )


async def test_an_event_that_repeats_later_increases_the_count_of_the_first():
    endpoint = Endpoint()
    recorder = Recorder(endpoint)
    for count in (1, 2, 3):
        record(recorder, "a")
        await recorder.flush()
        (event,) = endpoint.events.values()
        assert event["count"] == count


async def test_an_event_that_repeats_while_it_is_sent_is_not_lost():
    endpoint = Endpoint(delay=0.05)
    recorder = Recorder(endpoint)
    record(recorder, "a")
    flushing = asyncio.create_task(recorder.flush())
    await asyncio.sleep(0.01)
    record(recorder, "a")
    await flushing
    (event,) = endpoint.events.values()
    assert event["count"] == 2


async def test_a_full_queue_drops_new_events_and_reports_how_many(caplog):
    endpoint = Endpoint()
    recorder = Recorder(endpoint, capacity=3)
    record(recorder, *"abcdefgh")
    assert len(recorder._pending) == 3
    assert recorder.dropped == 5
    await recorder.flush()
    assert endpoint.messages == ["a", "b", "c"]
    assert "5 events were dropped" in caplog.text
    record(recorder, "i")
    await recorder.flush()
    assert endpoint.messages[-1] == "i"


async def test_many_events_of_one_namespace_neither_delay_nor_displace_those_of_others():
    endpoint = Endpoint()
    recorder = Recorder(endpoint, capacity=30, share=20)
    record(recorder, *(f"event {number}" for number in range(100)))
    other = replace(make_job(), namespace="other", name="b")
    recorder.record(other, Event("Normal", "Preparing", "other"), NOW)
    assert recorder.dropped == 80
    await recorder.flush()
    assert endpoint.messages[:3] == ["event 0", "other", "event 1"]
    assert len(endpoint.messages) == 21


REFUSALS = {
    "refused": ApiError(403, "Forbidden", "no right to create events"),
    "away": ConnectionRefusedError(),
    "slow": TimeoutError(),
    "a bug": ZeroDivisionError(),
}


@pytest.mark.parametrize("error", REFUSALS.values(), ids=REFUSALS.keys())
async def test_an_event_that_fails_is_logged_and_the_next_ones_are_sent(error, caplog):
    endpoint = Endpoint(error=error)
    await sent_in_background(Recorder(endpoint), "a", "b")
    assert endpoint.calls == ["create", "create"]
    assert caplog.text.count("event not recorded") == 2


async def test_a_lost_lease_ends_the_sending():
    recorder = Recorder(Endpoint(error=LeaseLostError("another replica may lead")))
    record(recorder, "a")
    with pytest.raises(LeaseLostError):
        await recorder.run()


# Shutdown


async def test_shutdown_sends_what_waits():
    endpoint = Endpoint()
    recorder = Recorder(endpoint)
    record(recorder, *"abc")
    await _flush(recorder)
    assert endpoint.messages == ["a", "b", "c"]


async def test_shutdown_does_not_wait_longer_than_its_limit(monkeypatch, caplog):
    monkeypatch.setattr("finetune_operator.__main__._FLUSH", 0.2)
    recorder = Recorder(Endpoint(delay=60))
    record(recorder, "a")
    await asyncio.wait_for(_flush(recorder), 2)
    assert "events were not sent within" in caplog.text


async def test_shutdown_after_a_lost_lease_sends_nothing(caplog):
    endpoint = Endpoint(error=LeaseLostError("another replica may lead"))
    recorder = Recorder(endpoint)
    record(recorder, *"abc")
    await _flush(recorder)
    assert endpoint.calls == ["create"]
    assert "another replica may lead" in caplog.text


async def test_an_event_that_was_being_sent_at_shutdown_is_sent_again():
    endpoint = Endpoint(delay=0.2)
    recorder = Recorder(endpoint)
    sending = asyncio.create_task(recorder.run())
    record(recorder, "a")
    await asyncio.sleep(0.05)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    endpoint.delay = 0
    await _flush(recorder)
    assert endpoint.messages == ["a"]


# Reconciling


async def test_a_slow_event_endpoint_does_not_delay_reconciling(monkeypatch):
    """The first reconcile of a job writes its status, queues an event and creates a pod."""
    world = World(Config())
    original = Api.create

    async def stuck(self: Api, path: str, body: Object, **query: str) -> None:
        if path.endswith("/events"):
            await asyncio.sleep(60)
        await original(self, path, body, **query)

    monkeypatch.setattr(Api, "create", stuck)
    recorder = world.controller.recorder
    sending = asyncio.create_task(recorder.run())
    await asyncio.wait_for(world.controller.reconciler.reconcile(KEY), 5)
    assert "a-prepare" in world.store.objects["pods"]
    assert [waiting.body["reason"] for waiting in recorder._pending.values()] == ["Preparing"]
    sending.cancel()


async def test_an_event_follows_the_write_that_it_reports(monkeypatch):
    world, calls = World(Config()), []

    def watch(name: str) -> None:
        original = getattr(Api, name)

        async def watched(self: Api, path: str, body: Object, **query: str) -> object:
            result = await original(self, path, body, **query)
            calls.append(body["reason"] if path.endswith("/events") else path.rpartition("/")[2])
            return result

        monkeypatch.setattr(Api, name, watched)

    watch("create")
    watch("patch")
    recorder = world.controller.recorder
    sending = asyncio.create_task(recorder.run())
    await world.controller.reconciler.reconcile(KEY)
    await asyncio.sleep(0)
    sending.cancel()
    assert calls.index("status") < calls.index("Preparing")


async def test_a_status_that_was_not_written_has_no_event():
    world = World(Config())
    for call in range(1, 6):
        world.wire.schedule(call, FAULTS["conflict"])
    with pytest.raises(RetryError):
        await world.controller.reconciler.reconcile(KEY)
    assert not world.controller.recorder._pending
