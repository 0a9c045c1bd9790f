"""Leader election on a Lease: only one of several replicas acts (docs/design/adr/0010).

No wall clock of another machine is relied on. A candidate may take the Lease once it has seen it
unchanged for the full duration, by its own clock. The holder counts from the moment before it sent
its last successful renewal, so its lease ends for itself before it can end for another replica.
"""

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError
from finetune_operator.parts import at_most
from finetune_operator.settings import LeaseSettings

_log = logging.getLogger("finetune.lease")
MARGIN = 5.0  # s that must be left of the lease to send a write
_SPARE = 1.0  # s before the end of the lease by which each write has ended
_RETRY = 1.0  # s between attempts to take the Lease
_RELEASE = 2.0  # s that releasing it may take


class LeaseLostError(Exception):
    """This replica may not act any longer; the process ends."""


def boot_clock() -> float:
    """Return monotonic seconds that also count while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Observation:
    """The content of the Lease, and since when it has not changed, by the own clock."""

    spec: Object
    since: float

    def updated(self, spec: Object | None, now: float) -> "Observation":
        """Return the observation after another read; a deleted Lease still protects its holder."""
        return self if spec is None or spec == self.spec else Observation(spec, now)

    def free(self, identity: str, now: float, duration: float) -> bool:
        """Return whether `identity` may take it; `duration` applies if the Lease names none."""
        if self.spec.get("holderIdentity", "") in ("", identity):
            return True
        seconds: float = self.spec.get("leaseDurationSeconds", duration)
        return now >= self.since + seconds


def held_by(old: Object, identity: str, duration: int, wall: datetime) -> Object:
    """Return the spec with which `identity` holds the Lease; its times are for people only."""
    ours = old.get("holderIdentity") == identity
    now = wall.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": duration,
        "acquireTime": old.get("acquireTime", now) if ours else now,
        "renewTime": now,
        "leaseTransitions": old.get("leaseTransitions", 0) + (0 if ours or not old else 1),
    }


class Elector:
    """One replica's part in the election: acquire, then renew until cancelled, then release."""

    def __init__(
        self, api: Api, settings: LeaseSettings, clock: Callable[[], float] = boot_clock
    ) -> None:
        self.identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self._api, self._settings, self._clock = api, settings, clock
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._path = f"{self._collection}/{settings.name}"
        self._lease: Object | None = None
        self._observed = Observation({}, clock())
        self._until = float("-inf")  # end of the own lease, by the own clock
        self.beat: Callable[[], None] = lambda: None
        """Called after every attempt to acquire or renew, also after one that failed."""

    @property
    def duration(self) -> float:
        """Seconds for which the Lease is held after a renewal."""
        return self._settings.duration

    @property
    def left(self) -> float:
        """Seconds for which this replica certainly holds the Lease."""
        return self._until - self._clock()

    def guard(self) -> float:
        """Return the seconds that a write may take; LeaseLostError if it must not be sent."""
        if self.left < MARGIN:
            raise LeaseLostError(
                f"{max(0.0, self.left):.1f} s are left of the lease {self._path}, a write needs "
                f"{MARGIN:.0f} s; another replica may lead"
            )
        return self.left - _SPARE

    def describe(self) -> str:
        """Return a line for the health endpoint."""
        if self.left > 0:
            return f"leading as {self.identity}, {self.left:.0f} s left of the lease"
        holder = self._observed.spec.get("holderIdentity") or "no replica"
        return f"standby as {self.identity}, the lease is held by {holder}"

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        await self._retry_until_held()
        _log.info("leading as %s", self.identity)

    async def renew(self) -> None:
        """Renew the Lease until cancelled; LeaseLostError if it cannot be renewed in time."""
        while True:
            await asyncio.sleep((self._settings.duration - MARGIN) / 2)
            self.guard()  # After a long pause of this process another replica may lead.
            try:
                async with asyncio.timeout(self.left - MARGIN):
                    await self._retry_until_held()
            except TimeoutError:
                raise LeaseLostError(
                    f"the lease {self._path} could not be renewed in time"
                ) from None

    async def release(self) -> None:
        """Forbid further writes and clear the holder, so that the next replica need not wait.

        If the request fails, the lease expires by itself.
        """
        self._until = float("-inf")
        try:
            if not await at_most(_RELEASE, self._clear_holder()):
                _log.warning("the lease was not released within %.0f s; it expires", _RELEASE)
        except (ApiError, *TRANSIENT) as error:
            _log.warning("the lease could not be released (%s); it expires", error)

    async def _clear_holder(self) -> None:
        await self._read()
        if self._lease and self._observed.spec.get("holderIdentity") == self.identity:
            await self._write({"holderIdentity": ""})
            _log.info("lease released")

    async def _retry_until_held(self) -> None:
        while True:
            held = await self._attempt()
            self.beat()
            if held:
                return
            await asyncio.sleep(_RETRY)

    async def _attempt(self) -> bool:
        """Take or renew the Lease if that is allowed; False means to try again."""
        try:
            # A dead connection costs one attempt, not the lease.
            async with asyncio.timeout((self._settings.duration - MARGIN) / 4):
                return await self._take()
        except ApiError as error:
            if error.code != 409:  # Another replica was faster.
                _log.warning("lease %s: %s", self._path, error)
            return False
        except TRANSIENT as error:
            _log.warning("lease %s: the API server does not answer (%r)", self._path, error)
            return False

    async def _take(self) -> bool:
        duration = self._settings.duration
        await self._read()
        if not self._observed.free(self.identity, self._clock(), duration):
            if self.left > 0:
                raise LeaseLostError(f"the lease {self._path} was taken by another replica")
            return False
        before = self._clock()
        await self._write(held_by(self._observed.spec, self.identity, duration, datetime.now(UTC)))
        self._until = before + duration
        return True

    async def _read(self) -> None:
        try:
            self._lease = await self._api.get(self._path)
        except ApiError as error:
            if error.code != 404:
                raise
            self._lease = None
        spec = None if self._lease is None else self._lease.get("spec", {})
        self._observed = self._observed.updated(spec, self._clock())

    async def _write(self, spec: Object) -> None:
        """Write the Lease; ApiError 409 if it has changed since it was last read."""
        if self._lease is None:
            metadata = {"name": self._settings.name, "namespace": self._settings.namespace}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
            await self._api.create(self._collection, body | {"metadata": metadata, "spec": spec})
        else:
            version = {"resourceVersion": self._lease["metadata"]["resourceVersion"]}
            await self._api.patch(self._path, {"metadata": version, "spec": spec})
