"""How a gang becomes complete: every rank waits, without a time limit, until all have joined.

A worker may start minutes after the others, because its node still pulls the image. So until the
gang is complete, a rank that has not joined is waited for. A rank that has joined, and is then
gone, is lost: the process group could never be made. Ranks that wait show in the store that they
are alive. From then on, the timeouts of the process groups apply.
"""

import socket
import time

from torch._C._distributed_c10d import TCPStore

from finetune_api.exit_codes import ExitCode
from finetune_api.names import with_port
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.waiting import Lookup, Waiting
from finetune_trainer.training.place import Place

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""Seconds without a sign of life after which a worker that had joined is lost."""
_CONNECT_TIMEOUT = 5.0  # s
_LOOK_UP_AGAIN = 15.0  # s without a connection, after which worker 0 may have another address
_COMPLETE, _MISSING = "finetune/complete", "finetune/missing"
_NAMED = 8  # workers in a message


def address_of_store(place: Place, waiting: Waiting, timeout: float) -> str:
    """Return the address of rank 0 as soon as its store listens.

    A pod whose containers have not started yet refuses connections. Raises TrainerError 78 if none
    was even refused for `timeout` seconds: then the network between the pods is closed.
    """
    address, began = place.address, time.monotonic()
    refused = began
    lookup: Lookup | None = None
    while (problem := _connect(address, place.port)) is not None:
        if isinstance(problem, ConnectionRefusedError):
            refused = time.monotonic()
        elif time.monotonic() - refused > timeout:
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"worker 0 did not answer at {with_port(address, place.port)} for {timeout:.0f} s "
                f"({problem}); open port {place.port} between the pods of the job",
            )
        waiting(f"worker 0 to listen at {with_port(address, place.port)} ({problem})")
        if lookup is None and place.name and time.monotonic() - began > _LOOK_UP_AGAIN:
            lookup = Lookup(place.name, place.address)
        address = (lookup and lookup.address) or address
        time.sleep(0.2)
    if lookup:
        lookup.close()
    return address


def assemble(store: TCPStore, place: Place, waiting: Waiting) -> None:
    """Join the gang and return when it is complete. Raises TrainerError 88 if a rank is lost."""
    store.add(_joined(place.worker), 1)
    if place.rank == 0:
        _await_workers(store, place, waiting)
    else:
        _await_rank_0(store, place, waiting)
    waiting(None)


def _await_workers(store: TCPStore, place: Place, waiting: Waiting) -> None:
    workers = place.world // place.processes
    missing, alive = list(range(workers)), _Alive(store)
    while missing := [w for w in missing if store.add(_joined(w), 0) < place.processes]:
        text = _names(missing, workers)
        if alive.is_due():
            store.set(_MISSING, text)
            alive.check([w for w in range(1, workers) if store.add(_joined(w), 0)])
        waiting(text)
        time.sleep(_pause(place))
    store.set(_COMPLETE, "yes")


def _await_rank_0(store: TCPStore, place: Place, waiting: Waiting) -> None:
    text, beat = "the other workers to join", 0.0
    while not store.check([_COMPLETE]):
        if time.monotonic() - beat > HEARTBEAT_SECONDS:
            _check_connection(place)
            store.add(_beats(place.worker), 1)
            text = store.get(_MISSING).decode() if store.check([_MISSING]) else text
            beat = time.monotonic()
        waiting(text)
        time.sleep(_pause(place))


class _Alive:
    """Which workers have shown that they are alive, as rank 0 sees it."""

    def __init__(self, store: TCPStore) -> None:
        self._store = store
        self._due = 0.0
        self._seen: dict[int, tuple[int, float]] = {}  # worker -> heartbeats, when they last grew

    def is_due(self) -> bool:
        """Return whether it is time to check again."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + HEARTBEAT_SECONDS
        return True

    def check(self, joined: list[int]) -> None:
        """Raise TrainerError 88 if a worker that had joined gives no sign of life."""
        now = time.monotonic()
        for worker in joined:
            beats = self._store.add(_beats(worker), 0)
            known, since = self._seen.get(worker, (-1, now))
            if beats != known:
                self._seen[worker] = beats, now
            elif now - since > SILENT_SECONDS:
                raise TrainerError(
                    ExitCode.PEER_LOST,
                    f"a peer was lost: worker {worker} had joined the gang and has not answered "
                    f"for {now - since:.0f} s, before all workers had joined",
                )


def _check_connection(place: Place) -> None:
    """Raise TrainerError 88 if worker 0 cannot be reached any more.

    Requests to a store whose host has lost its power would wait for ever.
    """
    deadline = time.monotonic() + SILENT_SECONDS
    while (problem := _connect(place.address, place.port)) is not None:
        if time.monotonic() > deadline or isinstance(problem, ConnectionRefusedError):
            where = with_port(place.address, place.port)
            raise TrainerError(
                ExitCode.PEER_LOST,
                f"a peer was lost: worker 0 at {where} does not answer any more ({problem})",
            )
        time.sleep(1.0)


def _connect(address: str, port: int) -> OSError | None:
    """Connect to rank 0 and disconnect. Returns the problem if that is not possible."""
    try:
        socket.create_connection((address, port), timeout=_CONNECT_TIMEOUT).close()
    except OSError as error:
        return error
    return None


def _names(missing: list[int], workers: int) -> str:
    """Return which workers have not joined; the first few by their numbers."""
    named = ", ".join(str(worker) for worker in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    noun = "worker" if len(missing) == 1 else "workers"
    return f"{noun} {named}{more} of {workers} to join (numbered from 0)"


def _joined(worker: int) -> str:
    return f"finetune/joined/{worker}"


def _beats(worker: int) -> str:
    return f"finetune/beats/{worker}"


def _pause(place: Place) -> float:
    """Return the seconds between two looks at the store, which all ranks share."""
    return min(2.0, 0.05 + place.world / 4096)
