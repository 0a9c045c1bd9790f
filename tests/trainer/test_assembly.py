"""A gang waits for workers that start late, and notices those that are gone again."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

from finetune_api.names import with_port
from finetune_trainer.common import waiting
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.common.waiting import Lookup, Waiting
from finetune_trainer.pod.processes import wait_for_address
from finetune_trainer.training import assembly, rendezvous
from finetune_trainer.training.place import Place
from tests.trainer import gang
from tests.trainer.conftest import MakeJob

LOOPBACK = ("127.255.97.1", "::1")
TIMEOUT = timedelta(seconds=20)
STORES: list[TCPStore] = []


@pytest.mark.slow
async def test_a_gang_waits_for_a_worker_that_starts_after_the_progress_deadline(
    make_job: MakeJob,
) -> None:
    job, plan = make_job(), gang.make_plan(totalSteps=4)
    job.config["progressDeadlineSeconds"] = 10
    texts = {0: "worker 1 of 2 to join", 1: "worker 0 to listen at 127."}
    for first, text in texts.items():
        (pod,) = job.start(plan, only=[first])
        await asyncio.sleep(16)
        assert pod.process.poll() is None, job.log
        report = await pod.report()
        assert report.waiting_for is not None
        assert report.waiting_for.startswith(text)
        assert report.activity_age_seconds < 5
        job.start_worker(1 - first)
        assert job.wait(90) == [0, 0], job.log
        (job.storage / "final" / "export.json").unlink()  # else the next attempt has nothing to do


@pytest.mark.slow
@pytest.mark.parametrize("worker", [0, 1])
async def test_a_stop_ends_the_wait_for_other_workers_at_once(
    worker: int, make_job: MakeJob
) -> None:
    job = make_job()
    (pod,) = job.start(gang.make_plan(), only=[worker])
    deadline = time.monotonic() + 60
    while not (pod.log.exists() and (await _waiting_for(pod))):
        assert time.monotonic() < deadline, job.log
        await asyncio.sleep(0.2)
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait(8) == 75, job.log
    assert (
        pod.result.message
        == f"rank {worker} was stopped; nothing is lost, the next attempt repeats it"
    )


async def _waiting_for(pod: gang.Pod) -> str | None:
    try:
        return (await pod.report()).waiting_for
    except OSError:
        return None


def test_the_address_of_worker_0_is_waited_for_without_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = time.monotonic()

    def look_up(name: str, *_: object, **__: object) -> list[Any]:
        if time.monotonic() - began < 2:
            raise OSError(f"no {name} yet")
        pair = [(socket.AF_INET6, "fd00::7"), (socket.AF_INET, "10.0.0.7")]
        return [(family, 1, 6, "", (address, 0)) for family, address in pair]

    monkeypatch.setattr(waiting, "_LOG_SECONDS", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    reported: list[str | None] = []
    assert wait_for_address("job-1-0.job", "10.0.0.8", StopSignal(), reported.append) == "10.0.0.7"
    assert reported[1] == "the address of worker 0 (job-1-0.job: no job-1-0.job yet)"
    assert reported[-1] is None
    # In a cluster with both families, worker 0 listens on the same family as this pod.
    assert wait_for_address("job-1-0.job", "fd00::8", StopSignal(), reported.append) == "fd00::7"


def test_a_stop_ends_the_wait_for_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        hangs.wait(30)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    stop = StopSignal()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(TrainerError, match="stopped while waiting for the address") as caught:
        wait_for_address("job-1-0.job", "10.0.0.8", stop, lambda _: None)
    assert caught.value.code == 75
    hangs.set()


def test_what_is_waited_for_is_logged_every_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0, *range(301), 301])
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    reported: list[str | None] = []
    wait = Waiting(reported.append)
    for _ in range(301):
        wait("worker 3 of 4 to join")
    assert caplog.messages == [
        f"waiting for worker 3 of 4 to join, for {waited} s so far"
        for waited in (60, 120, 180, 240, 300)
    ]
    wait(None)
    assert (len(reported), reported[-1]) == (302, None)


def test_a_lookup_notices_that_worker_0_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = iter(["10.0.0.7"] * 3 + ["10.0.0.9"] * 1000)
    monkeypatch.setattr(waiting, "_REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", (next(addresses), 0))]
    )
    lookup = Lookup("job-1-0.job", "10.0.0.8")
    deadline = time.monotonic() + 5
    while lookup.address != "10.0.0.9":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lookup.close()


def place_of(rank: int, world: int, address: str, processes: int = 1) -> Place:
    return Place(rank, rank % processes, world, address, 29511, processes)


def run(steps: list[Callable[[], object]]) -> list[BaseException | None]:
    """Run functions in threads. Return how each of them ended."""
    ends: list[BaseException | None] = [None] * len(steps)

    def call(index: int) -> None:
        try:
            steps[index]()
        except Exception as error:
            ends[index] = error

    threads = [threading.Thread(target=call, args=[index]) for index in range(len(steps))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return ends


def join(place: Place, reported: list[str | None], delay: float = 0) -> Callable[[], None]:
    """Return a function that joins a gang as a rank does, up to its process group."""

    def begin() -> None:
        time.sleep(delay)
        wait = Waiting(reported.append)
        if place.rank:
            assert assembly.address_of_store(place, wait, 60) == place.address
        store = rendezvous._store(place, TIMEOUT)
        STORES.append(store)  # rank 0's is needed until all have joined
        assembly.assemble(store, place, wait)

    return begin


@pytest.mark.parametrize("address", LOOPBACK)
def test_ranks_join_in_any_order(address: str) -> None:
    reported: list[list[str | None]] = [[] for _ in range(6)]
    delays = [1.0, 0.0, 2.5, 2.0, 0.5, 0.0]
    places = [place_of(rank, 6, address, processes=2) for rank in range(6)]
    ends = run([join(p, reported[p.rank], delays[p.rank]) for p in places])
    assert ends == [None] * 6
    assert str(reported[1][0]).startswith(f"worker 0 to listen at {with_port(address, 29511)} (")
    assert "workers 0, 1 of 3 to join (numbered from 0)" in reported[0] or (
        "worker 1 of 3 to join (numbered from 0)" in reported[0]
    )
    assert all(texts[-1] is None for texts in reported)
    STORES.clear()


def test_a_worker_that_joined_and_is_gone_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(assembly, "SILENT_SECONDS", 1.5)
    first = place_of(0, 4, LOOPBACK[0])
    store = rendezvous._store(first, TIMEOUT)
    store.add("finetune/joined/2", 1)  # and it never shows up again
    errors = run(
        [
            lambda: assembly.assemble(store, first, Waiting(lambda _: None)),
        ]
    )
    (error,) = errors
    assert isinstance(error, TrainerError)
    assert error.code == 88
    assert error.message.startswith("a peer was lost: worker 2 had joined the gang and has not")


def test_workers_notice_that_worker_0_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "HEARTBEAT_SECONDS", 0.2)
    server = TCPStore(
        LOOPBACK[0], 29512, 3, is_master=True, timeout=TIMEOUT, wait_for_workers=False
    )
    place = Place(1, 0, 3, LOOPBACK[0], 29512)
    client = TCPStore(LOOPBACK[0], 29512, 3, timeout=TIMEOUT)
    holder = [server]
    del server
    threading.Timer(1.0, holder.clear).start()
    (error,) = run([lambda: assembly.assemble(client, place, Waiting(lambda _: None))])
    assert error is not None
    lost = error.code == 88 if isinstance(error, TrainerError) else rendezvous.lost_a_peer(error)
    assert lost, error


def test_a_closed_network_between_the_pods_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pod whose containers have not started refuses connections, and a closed port drops them."""
    monkeypatch.setattr(assembly, "_CONNECT_TIMEOUT", 0.2)
    with socket.create_server((LOOPBACK[0], 29513), backlog=0) as full:
        held = [socket.socket() for _ in range(3)]
        for connection in held:  # they fill the queue, so that later packets are dropped
            connection.setblocking(False)
            connection.connect_ex(full.getsockname())
        place = Place(1, 0, 2, LOOPBACK[0], 29513)
        wait = Waiting(lambda _: None)
        with pytest.raises(TrainerError, match="open port 29513 between the pods") as caught:
            assembly.address_of_store(place, wait, 1.0)
        assert caught.value.code == 78
        for connection in held:
            connection.close()
