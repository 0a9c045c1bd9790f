"""The operator's connection to the simulated API server, with the faults that it can have.

A fault or an event is scheduled for the n-th call from now: an error before or after the request
takes effect, a crash of the operator, a request that takes effect late, or an event of the world at
that moment. A server that hangs answers no call until the client gives up, and time passes
meanwhile.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finetune_api.base import Object
from finetune_client.errors import ApiError
from tests.operator.simulator.store import Store, parse


class Crash(BaseException):
    """The operator process dies here. No handler catches it, because it is not an Exception."""


@dataclass(frozen=True)
class Fault:
    """What happens to one call."""

    name: str
    raises: Callable[[], BaseException]
    effect: str = "no"  # whether the server carries the request out: no, yes or late
    seconds: float = 0.0  # until the client gives up


def _refusal(code: int, reason: str, message: str) -> Callable[[], BaseException]:
    return lambda: ApiError(code, reason, message)


_GIVES_UP = 10.0  # s, the time-out of finetune_client.api.Api
_HANGS = Fault("hangs without effect", TimeoutError, seconds=_GIVES_UP)
_HANGS_LATE = Fault("hangs, the effect comes late", TimeoutError, "late", _GIVES_UP)
FAULTS = {
    fault.name: fault
    for fault in (
        Fault("connection refused", ConnectionRefusedError),
        Fault("connection cut after the effect", ConnectionResetError, "yes"),
        Fault("timeout after the effect", TimeoutError, "yes"),
        Fault("timeout, the effect comes late", TimeoutError, "late"),
        Fault("conflict", _refusal(409, "Conflict", "the object has been modified")),
        Fault("too many requests", _refusal(429, "TooManyRequests", "slow down")),
        Fault("server error", _refusal(500, "InternalError", "etcd is away")),
        Fault("server error after the effect", _refusal(504, "Timeout", "timed out"), "yes"),
        _HANGS,
        _HANGS_LATE,
        Fault("hangs after the effect", TimeoutError, "yes", _GIVES_UP),
        Fault("crash before", Crash),
        Fault("crash after", Crash, "yes"),
        Fault("crash, the effect comes late", Crash, "late"),
    )
}


@dataclass(frozen=True)
class BeforeResponse:
    """An event that the watches deliver after a call took effect and before its response."""

    event: Any


@dataclass
class Wire:
    """The network: counts calls over all runs of the operator and holds the scheduled faults."""

    store: Store
    apply_event: Callable[[Any], None]
    deliver: Callable[[], None] = lambda: None  # the watches of the current operator
    calls: int = 0
    writes: int = 0  # calls that would change an object
    scheduled: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    delayed: list[Callable[[], object]] = field(default_factory=list)
    frozen_until: float = 0.0  # time before which the server does not answer any call

    @property
    def frozen(self) -> bool:
        return self.store.clock.seconds < self.frozen_until

    @property
    def disturbed(self) -> bool:
        return bool(self.scheduled or self.delayed or self.frozen)

    def schedule(self, calls: int, what: Any) -> None:
        self.scheduled[self.calls + calls].append(what)

    def repair(self) -> None:
        """Remove all faults; requests that were delayed take effect."""
        self.scheduled.clear()
        self.frozen_until = 0.0
        self.arrive()

    def arrive(self) -> None:
        late, self.delayed = self.delayed, []
        for effect in late:
            with contextlib.suppress(ApiError):  # the client has given up
                effect()


class Api:
    """The requests of finetune_operator.execute.Requests in one run of the operator process."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._store, self.dead = wire, wire.store, False

    async def get(self, path: str, **query: str) -> Object:
        plural, name, _ = parse(path)
        if name is None:
            field, _, value = query["fieldSelector"].partition("=")
            assert (plural, field) == ("events", "involvedObject.uid")
            page: Object = self._call(lambda late: {"items": self._store.events_of(value)})
            return page
        found: Object = self._call(lambda late: self._store.get(plural, str(name)))
        return found

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        plural, _, _ = parse(path)
        selector = query.get("labelSelector", "")
        answer: tuple[list[Object], str] = self._call(
            lambda late: (self._store.list(plural, selector), str(self._store.version))
        )
        return answer

    async def create(self, path: str, body: Object, **query: str) -> None:
        plural, _, _ = parse(path)
        dry = "dryRun" in query
        self._call(
            lambda late: self._store.create(plural, body, dry=dry, operator=True, late=late),
            writes=not dry,
            conflicts=not dry,
        )

    async def post(self, path: str, body: Object, **query: str) -> Object:
        assert query["dryRun"] == "All"
        plural, _, _ = parse(path)
        answer: Object = self._call(lambda late: self._store.create(plural, body, dry=True))
        return answer

    async def patch(self, path: str, body: Object) -> Object:
        plural, name, sub = parse(path)
        answer: Object = self._call(
            lambda late: self._store.patch(plural, str(name), sub, body, operator=True, late=late),
            writes=True,
            conflicts=True,
        )
        return answer

    async def delete(self, path: str, body: Object) -> None:
        plural, name, _ = parse(path)
        self._call(
            lambda late: self._store.delete(plural, str(name), body, operator=True, late=late),
            writes=True,
        )

    def _call(
        self, effect: Callable[[bool], Any], *, writes: bool = False, conflicts: bool = False
    ) -> Any:
        if self.dead:
            raise Crash
        wire = self._wire
        wire.calls += 1
        wire.writes += writes
        fault: Fault | None = None
        after: Any = None
        for what in wire.scheduled.pop(wire.calls, ()) if wire.scheduled else ():
            if isinstance(what, Fault):
                fault = what if conflicts or what.name != "conflict" else fault
            elif isinstance(what, BeforeResponse):
                after = what
            else:
                wire.apply_event(what)
        if wire.frozen:
            # What was sent to a process that is stopped may be read when it goes on.
            fault = _HANGS_LATE if wire.calls % 2 else _HANGS
        if fault is None:
            answer = effect(False)
            if after:
                wire.apply_event(after.event)
                wire.deliver()
            return answer
        wire.store.clock.seconds += fault.seconds
        error = fault.raises()
        self.dead = isinstance(error, Crash)
        if fault.effect == "late" and writes:
            wire.delayed.append(lambda: effect(True))
        elif fault.effect == "yes":
            effect(False)  # the server may refuse it, and this is then the response
        raise error
