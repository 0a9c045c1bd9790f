"""The operator's connection to the simulated API server, with everything that can go wrong on it.

Something is armed for the n-th call from now: an error before or after the effect, a crash of the
operator, an effect that comes late, or an event of the world that happens just then.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from finetune_api.base import Object
from finetune_operator.kube import ApiError
from tests.operator.simulator.store import Store, parse


class Crash(BaseException):
    """The operator process dies here: no handler for errors may stop it."""


@dataclass(frozen=True)
class Fault:
    """What happens to one call. `effect`: whether the server carries it out, and when."""

    name: str
    raises: Callable[[], BaseException]
    effect: str = "no"  # no | yes | late


def _refusal(code: int, reason: str, message: str) -> Callable[[], BaseException]:
    return lambda: ApiError(code, reason, message)


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
        Fault("crash before", Crash),
        Fault("crash after", Crash, "yes"),
        Fault("crash, the effect comes late", Crash, "late"),
    )
}


@dataclass(frozen=True)
class BeforeAnswer:
    """An event after the effect of a call, which the watches tell before the call is answered."""

    event: Any


@dataclass
class Wire:
    """Counts calls over all lives of the operator; holds what is armed and what is under way."""

    store: Store
    happen: Callable[[Any], None]  # an event of the world
    deliver: Callable[[], None] = lambda: None  # the watches of the operator that lives now
    calls: int = 0
    writes: int = 0  # calls that would change something
    armed: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    under_way: list[Callable[[], object]] = field(default_factory=list)

    def arm(self, calls: int, what: Any) -> None:
        self.armed[self.calls + calls].append(what)

    def calm(self) -> None:
        """From here on the connection is good; what was under way arrives."""
        self.armed.clear()
        self.arrive()

    def arrive(self) -> None:
        late, self.under_way = self.under_way, []
        for effect in late:
            with contextlib.suppress(ApiError):  # nobody listens any more
                effect()


class Api:
    """finetune_operator.kube.Requests, for one life of the operator."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._store, self.dead = wire, wire.store, False

    async def get(self, path: str, **query: str) -> Object:
        plural, name, _ = parse(path)
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
        for what in wire.armed.pop(wire.calls, ()) if wire.armed else ():
            if isinstance(what, Fault):
                fault = what if conflicts or what.name != "conflict" else fault
            elif isinstance(what, BeforeAnswer):
                after = what
            else:
                wire.happen(what)
        if fault is None:
            answer = effect(False)
            if after:
                wire.happen(after.event)
                wire.deliver()
            return answer
        error = fault.raises()
        self.dead = isinstance(error, Crash)
        if fault.effect == "late" and writes:
            wire.under_way.append(lambda: effect(True))
        elif fault.effect == "yes":
            effect(False)  # may be refused: then that is the answer
        raise error
