"""The liveness, readiness and metrics endpoints.

Each part that must run without end has a heart, which beats when the part does something: when it
received an event or a bookmark, or sent a request, even without success. The operator therefore
remains healthy while the API server does not answer. It is unhealthy if a part hangs, so that the
kubelet restarts the process.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from finetune_operator.metrics import CONTENT_TYPE
from finetune_operator.queue import Key

_LOOP_LATE = 60.0  # s
_RECONCILE_LATE = 600.0  # s; creating a thousand pods on a slow API server takes less


@dataclass
class Heart:
    """One part of the operator: when it last did something, and whether its cache is filled.

    A part that watches a namespace may be refused while the others are served.
    """

    name: str
    late_after: float  # s
    clock: Callable[[], float]
    kind: str = ""  # hearts of one kind do the same in different namespaces
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)  # filled, or refused
    refusal: str = ""
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        """Note that the part did something."""
        self._last = self.clock()

    def fill(self) -> None:
        """Note that the part knows all objects that exist."""
        self.refusal = ""
        self.filled.set()
        self.answered.set()
        self.beat()

    def refuse(self, reason: str) -> None:
        """Note that the part may not list its objects. It keeps trying."""
        self.refusal = reason
        self.answered.set()
        self.beat()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return self.clock() - self._last


async def _empty_page() -> bytes:
    return b""


@dataclass
class Health:
    """Alive while every heart beats and no worker hangs; ready once the caches are filled."""

    longest: Callable[[], tuple[Key, float] | None] = lambda: None  # running reconcile, seconds
    role: Callable[[], str] = lambda: "the only replica"
    page: Callable[[], Awaitable[bytes]] = _empty_page  # metrics
    clock: Callable[[], float] = time.monotonic
    _hearts: list[Heart] = field(default_factory=list)

    def heart(self, name: str, late_after: float, *, filled: bool = True, kind: str = "") -> Heart:
        """Add a part and return its heart; `late_after` is in seconds."""
        heart = Heart(name, late_after, self.clock, kind)
        if filled:
            heart.fill()
        self._hearts.append(heart)
        return heart

    def late(self) -> list[str]:
        """Return a sentence for each part that hangs."""
        sentences = [
            f"{heart.name}: no activity for {heart.age:.0f} s, {heart.late_after:.0f} s are allowed"
            for heart in self._hearts
            if heart.age > heart.late_after
        ]
        running = self.longest()
        if running and running[1] > _RECONCILE_LATE:
            (namespace, name), seconds = running
            text = f"reconciling for {seconds:.0f} s, {_RECONCILE_LATE:.0f} s are allowed"
            sentences.append(f"worker on {namespace}/{name}: {text}")
        return sentences

    def unfilled(self) -> list[str]:
        """Return a sentence for each cache that is not filled yet.

        A namespace that is refused is left out if another one of its kind is served.
        """
        served = {heart.kind for heart in self._hearts if heart.kind and heart.filled.is_set()}
        return [
            f"{heart.name}: {heart.refusal or 'not listed yet'}"
            for heart in self._hearts
            if not heart.filled.is_set() and not (heart.refusal and heart.kind in served)
        ]

    async def run(self, port: int) -> None:
        """Serve /healthz, /readyz and /metrics on the port; 0: serve nothing."""
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
        return self._response(self.late())

    async def _ready(self, _: web.Request) -> web.Response:
        return self._response(self.late() + self.unfilled())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self.page(), headers={"Content-Type": CONTENT_TYPE})

    def _response(self, problems: list[str]) -> web.Response:
        ages = [
            f"{heart.name}: {heart.age:.0f} s ago" + (f", {heart.refusal}" if heart.refusal else "")
            for heart in self._hearts
        ]
        lines = [*problems, "", *ages] if problems else ["ok", "", self.role(), *ages]
        return web.Response(status=503 if problems else 200, text="\n".join(lines) + "\n")
