"""Liveness from what the operator really does: a heart that beats only while work is done."""

import asyncio
import time
from dataclasses import dataclass, field

from aiohttp import web

_DEAD_AFTER = 120.0  # s


@dataclass
class Health:
    """Ready once the caches are filled; alive while the event loop turns."""

    ready: asyncio.Event = field(default_factory=asyncio.Event)
    _beat: float = field(default_factory=time.monotonic)

    async def run(self, port: int) -> None:
        """Serve /healthz and /readyz; only beats when no port is given."""
        runner = None
        if port:
            app = web.Application()
            app.add_routes([web.get("/healthz", self._alive), web.get("/readyz", self._ready)])
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, port=port).start()
        try:
            while True:
                self._beat = time.monotonic()
                await asyncio.sleep(5)
        finally:
            if runner:
                await runner.cleanup()

    async def _alive(self, _: web.Request) -> web.Response:
        late = time.monotonic() - self._beat
        return web.Response(status=200 if late < _DEAD_AFTER else 500, text=f"beat {late:.0f}s ago")

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready.is_set() else 503)
