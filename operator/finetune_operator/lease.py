"""Leader election on a Lease: of several replicas one acts (docs/adr/0010).

Nobody's wall clock is believed. A candidate may take the Lease once it has seen it unchanged for
its whole duration, by the candidate's own clock. The holder counts from the moment before it sent
its last successful renewal, so its lease ends for itself before it can end for anybody else.
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
from finetune_operator.kube import TRANSIENT, ApiError, Kube
from finetune_operator.settings import LeaseSettings

_log = logging.getLogger("finetune.lease")
MARGIN = 5.0  # s of the lease that a write needs to be sent
_SPARE = 1.0  # s before the end of the lease by which each write has ended
_RETRY = 1.0  # s
_RELEASE = 2.0  # s


class LeaseLostError(Exception):
    """This replica may not act any more; the process ends."""


def boot_clock() -> float:
    """Monotonic seconds that also pass while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Sight:
    """What the Lease said, and since when it has not changed, by the own clock."""

    spec: Object
    since: float

    def again(self, spec: Object | None, now: float) -> "Sight":
        """Looked at once more; a Lease that was deleted still protects whom it named."""
        return self if spec is None or spec == self.spec else Sight(spec, now)

    def free(self, identity: str, now: float, duration: float) -> bool:
        """Whether `identity` may take it; `duration` where the Lease names none."""
        if self.spec.get("holderIdentity", "") in ("", identity):
            return True
        seconds: float = self.spec.get("leaseDurationSeconds", duration)
        return now >= self.since + seconds


def claim(old: Object, identity: str, duration: int, wall: datetime) -> Object:
    """The spec by which `identity` holds the Lease; its times are for people only."""
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
    """One replica's part: acquire, then renew for ever, release in the end."""

    def __init__(
        self, kube: Kube, settings: LeaseSettings, clock: Callable[[], float] = boot_clock
    ) -> None:
        self.identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self._kube, self._settings, self._clock = kube, settings, clock
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._path = f"{self._collection}/{settings.name}"
        self._lease: Object | None = None
        self._sight = Sight({}, clock())
        self._until = float("-inf")  # end of our lease, by the own clock

    @property
    def left(self) -> float:
        """Seconds for which the Lease is surely ours."""
        return self._until - self._clock()

    def guard(self) -> float:
        """Seconds a write may take; LeaseLostError when it may not be sent."""
        if self.left < MARGIN:
            raise LeaseLostError(
                f"{max(0.0, self.left):.1f} s are left of the lease {self._path}, a write needs "
                f"{MARGIN:.0f} s; another replica may lead"
            )
        return self.left - _SPARE

    def describe(self) -> str:
        """One line for the health endpoint."""
        if self.left > 0:
            return f"leading as {self.identity}, {self.left:.0f} s left of the lease"
        holder = self._sight.spec.get("holderIdentity") or "nobody"
        return f"standby as {self.identity}, the lease is held by {holder}"

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        await self._insist()
        _log.info("leading as %s", self.identity)

    async def renew(self) -> None:
        """Keep the Lease; LeaseLostError as soon as it cannot be kept for sure."""
        while True:
            await asyncio.sleep((self._settings.duration - MARGIN) / 2)
            self.guard()  # paused for so long that somebody else may lead
            try:
                async with asyncio.timeout(self.left - MARGIN):
                    await self._insist()
            except TimeoutError:
                raise LeaseLostError(
                    f"the lease {self._path} could not be renewed in time"
                ) from None

    async def release(self) -> None:
        """Nothing is written from here on, and the next replica need not wait; best effort."""
        self._until = float("-inf")
        try:
            async with asyncio.timeout(_RELEASE):
                await self._look()
                if self._lease and self._sight.spec.get("holderIdentity") == self.identity:
                    await self._write({"holderIdentity": ""})
                    _log.info("lease released")
        except (ApiError, *TRANSIENT) as error:
            _log.warning("the lease could not be released (%s); it runs out by itself", error)

    async def _insist(self) -> None:
        while True:
            if await self._attempt():
                return
            await asyncio.sleep(_RETRY)

    async def _attempt(self) -> bool:
        """Look, and take or keep the Lease if it may be ours; false: try again."""
        try:
            # A dead connection may cost one attempt, not the lease.
            async with asyncio.timeout((self._settings.duration - MARGIN) / 4):
                return await self._take()
        except ApiError as error:
            if error.code != 409:  # another one was faster
                _log.warning("lease %s: %s", self._path, error)
            return False
        except TRANSIENT as error:
            _log.warning("lease %s: the API server does not answer (%r)", self._path, error)
            return False

    async def _take(self) -> bool:
        duration = self._settings.duration
        await self._look()
        if not self._sight.free(self.identity, self._clock(), duration):
            if self.left > 0:
                raise LeaseLostError(f"the lease {self._path} was taken by another replica")
            return False
        before = self._clock()
        await self._write(claim(self._sight.spec, self.identity, duration, datetime.now(UTC)))
        self._until = before + duration
        return True

    async def _look(self) -> None:
        try:
            self._lease = await self._kube.get(self._path)
        except ApiError as error:
            if error.code != 404:
                raise
            self._lease = None
        spec = None if self._lease is None else self._lease.get("spec", {})
        self._sight = self._sight.again(spec, self._clock())

    async def _write(self, spec: Object) -> None:
        """Of the version last looked at; ApiError 409 when it has changed since."""
        if self._lease is None:
            metadata = {"name": self._settings.name, "namespace": self._settings.namespace}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
            await self._kube.create(self._collection, body | {"metadata": metadata, "spec": spec})
        else:
            version = {"resourceVersion": self._lease["metadata"]["resourceVersion"]}
            await self._kube.patch(self._path, {"metadata": version, "spec": spec})
