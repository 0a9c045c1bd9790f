"""Liveness and readiness from what the operator really does; beside them, its metrics.

Each part that must go on for ever has a heart, which beats when the part does something: an event,
a bookmark, a request, a repeated attempt. An API server that is away therefore kills nobody; a part
that hangs is named, and the kubelet starts the process again.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from finetune_operator.metrics import CONTENT_TYPE
from finetune_operator.queue import Key

_LOOP_LATE = 60.0  # s
_LOOK_LATE = 600.0  # s; a thousand pods of a slow API server are created in less


@dataclass
class Heart:
    """One part: when it last did something, and whether its cache is filled.

    Of several namespaces one may be refused: its heart knows so, and the others go on.
    """

    name: str
    late_after: float  # s
    clock: Callable[[], float]
    kind: str = ""  # what there is one of for each namespace
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # filled, or refused
    refusal: str = ""
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        """It did something."""
        self._last = self.clock()

    def fill(self) -> None:
        """It knows everything that exists."""
        self.refusal = ""
        self.filled.set()
        self.answered.set()
        self.beat()

    def refuse(self, why: str) -> None:
        """It may not know what exists; asked again, for rights come back."""
        self.refusal = why
        self.answered.set()
        self.beat()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return self.clock() - self._last


async def _nothing() -> bytes:
    return b""


@dataclass
class Health:
    """Alive while every heart beats and no look at a job hangs; ready once the caches are full."""

    longest: Callable[[], tuple[Key, float] | None] = lambda: None  # look at a job
    role: Callable[[], str] = lambda: "the only replica"
    page: Callable[[], Awaitable[bytes]] = _nothing  # of metrics
    clock: Callable[[], float] = time.monotonic
    _hearts: list[Heart] = field(default_factory=list)

    def heart(self, name: str, late_after: float, *, filled: bool = True, kind: str = "") -> Heart:
        """A new part to be watched; those of a kind do the same in different namespaces."""
        heart = Heart(name, late_after, self.clock, kind)
        if filled:
            heart.fill()
        self._hearts.append(heart)
        return heart

    def late(self) -> list[str]:
        """A sentence for each part that hangs."""
        sentences = [
            f"{heart.name}: nothing for {heart.age:.0f} s, {heart.late_after:.0f} s are allowed"
            for heart in self._hearts
            if heart.age > heart.late_after
        ]
        look = self.longest()
        if look and look[1] > _LOOK_LATE:
            (namespace, name), seconds = look
            text = f"one look for {seconds:.0f} s, {_LOOK_LATE:.0f} s are allowed"
            sentences.append(f"worker on {namespace}/{name}: {text}")
        return sentences

    def unfilled(self) -> list[str]:
        """A sentence for each cache that is not filled yet.

        A namespace that is refused holds up nothing where another one is served.
        """
        served = {heart.kind for heart in self._hearts if heart.kind and heart.filled.is_set()}
        return [
            f"{heart.name}: {heart.refusal or 'not listed yet'}"
            for heart in self._hearts
            if not heart.filled.is_set() and not (heart.refusal and heart.kind in served)
        ]

    async def run(self, port: int) -> None:
        """Serve /healthz, /readyz and /metrics; only beats when no port is given."""
        loop = self.heart("event loop", _LOOP_LATE)
        runner = None
        if port:
            app = web.Application()
            app.add_routes(
                [
                    web.get("/healthz", self._alive),
                    web.get("/readyz", self._ready),
                    web.get("/metrics", self._metrics),
                ]
            )
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, port=port).start()
        try:
            while True:
                loop.beat()
                await asyncio.sleep(5)
        finally:
            if runner:
                await runner.cleanup()

    async def _alive(self, _: web.Request) -> web.Response:
        return self._answer(self.late())

    async def _ready(self, _: web.Request) -> web.Response:
        return self._answer(self.late() + self.unfilled())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self.page(), headers={"Content-Type": CONTENT_TYPE})

    def _answer(self, wrong: list[str]) -> web.Response:
        ages = [
            f"{heart.name}: {heart.age:.0f} s ago" + (f", {heart.refusal}" if heart.refusal else "")
            for heart in self._hearts
        ]
        lines = [*wrong, "", *ages] if wrong else ["ok", "", self.role(), *ages]
        return web.Response(status=503 if wrong else 200, text="\n".join(lines) + "\n")
