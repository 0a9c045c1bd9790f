"""The watch on FineTuneJobs: kopf's `on.event`, and nothing else of kopf.

No create, update, timer, daemon or index handler: those patch annotations, force finalizers, and
an index over pods is quadratic at start-up (docs/adr/0002).

kopf gives up on some answers of an API server that starts, stops or is overloaded; here it never
does: requests are repeated for ever, and whatever ends it all the same starts it again.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import kopf

from finetune_api.base import API_GROUP, API_VERSION, VERSION
from finetune_api.names import PLURAL
from finetune_operator import jobs as paths
from finetune_operator.access import open_session
from finetune_operator.health import Health, Heart
from finetune_operator.jobs import Jobs
from finetune_operator.kube import TRANSIENT, ApiError, Counted, Kube, backoff, refusal, told
from finetune_operator.settings import Settings

_log = logging.getLogger("finetune.watch")
_SERVER_TIMEOUT = 240  # s after which the server ends a watch, and kopf begins the next
_LATE = 400.0  # s
_APART = 1.0  # s between two watches of the same jobs: a stream that is cut at once must not spin
_STEADY = 60.0  # s; what ran for so long was no failed start


class _Backoffs:
    """kopf's pauses between repeated requests: without end, so that it never gives up."""

    def __iter__(self) -> Iterator[float]:
        return backoff(0.5, 8.0)


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf copies every object to find what changed in it, for handlers that we do not have."""

    def build(self, **_: Any) -> dict[str, Any]:
        """Nothing of an object is compared."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Nothing is stored: the operator never writes annotations."""


async def run(
    kube: Kube,
    jobs: Jobs,
    configuration: Any,
    settings: Settings,
    health: Health,
    started: Callable[[], None],
    counted: Counted,
) -> None:
    """Feed the cache for ever. `started` is called when kopf has taken over the signals."""
    hearts = {
        paths.collection(namespace): health.heart(
            f"watch on jobs in {namespace or 'all namespaces'}", _LATE, filled=False, kind="jobs"
        )
        for namespace in settings.namespaces or (None,)
    }
    loop = asyncio.get_running_loop()
    pauses = backoff(1.0, 30.0)
    while True:
        begin = loop.time()
        try:
            await _installed(kube, hearts)
            await _kopf(settings, _registry(jobs, configuration, _Pulse(hearts, counted)), started)
        except Exception as error:  # kopf raises whatever a task of it raised
            _log.warning("the watch on jobs ended (%s); it is started again", error)
        if loop.time() - begin > _STEADY:
            pauses = backoff(1.0, 30.0)
        await asyncio.sleep(next(pauses))


async def _installed(kube: Kube, hearts: dict[str, Heart]) -> None:
    """Until the resource exists: kopf would stay deaf for ever if it started before."""
    for pause in backoff(1.0, 8.0):
        for heart in hearts.values():
            heart.beat()
        for collection in hearts:  # any: rights on one of several namespaces may be gone
            try:
                await kube.get(collection, limit="1")
                return
            except ApiError as error:
                text = f"{API_VERSION} {PLURAL}: {error}"
                hint = "; is the CustomResourceDefinition installed?" if error.code == 404 else ""
                _log.warning("jobs cannot be listed: %s%s", text, hint)
            except TRANSIENT as error:
                _log.warning("the API server does not answer (%r); trying again", error)
        await asyncio.sleep(pause)


async def _kopf(
    settings: Settings, registry: kopf.OperatorRegistry, started: Callable[[], None]
) -> None:
    """Until one of its tasks ends. Not `kopf.operator`: that would cancel tasks that are ours."""
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=_kopf_settings(settings),
        standalone=True,
        # For its peering, which is off. It would make one from the name of our user, and the user
        # of a container need not have a name.
        identity="finetune-operator",
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )
    started()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=5)
    for task in done:
        task.result()


def _kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.scanning.disabled = True  # needs no right on CRDs and namespaces
    chosen.watching.server_timeout = _SERVER_TIMEOUT
    chosen.watching.chunk_size = 500
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.networking.request_timeout = 10
    chosen.networking.error_backoffs = _Backoffs()
    chosen.process.ultimate_exiting_timeout = None  # it would kill us after a restart of kopf
    if settings.selector.text:
        chosen.watching.label_selectors[API_GROUP, PLURAL] = settings.selector.text
    return chosen


def _registry(jobs: Jobs, configuration: Any, pulse: "_Pulse") -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    # Coroutines: kopf runs plain functions in threads, and our queue belongs to the loop.
    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        session = open_session(configuration, pulse)
        return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session)

    @kopf.on.event(API_GROUP, VERSION, PLURAL, registry=registry)
    async def event(event: kopf.RawEvent, **_: Any) -> None:
        item = dict(event["object"])
        if event["type"] == "DELETED":
            metadata = item["metadata"]
            jobs.remove((metadata["namespace"], metadata["name"]), metadata["uid"])
        else:
            jobs.take(item)

    return registry


class _Pulse:
    """Sees kopf's requests on jobs: beats the hearts, counts, and keeps watches a little apart."""

    def __init__(self, hearts: dict[str, Heart], counted: Counted) -> None:
        self._hearts, self._counted = hearts, counted
        self._next: dict[str, float] = {}

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        heart = self._hearts.get(request.url.path)
        if heart is None:
            return await handler(request)
        heart.beat()
        watches = "watch" in request.url.query
        if watches:
            await self._apart(request.url.path)
        verb = "watch" if watches else "list"
        response = await told(self._counted, verb, handler(request))
        heart.beat()
        if response.status == 200 and not watches:
            heart.fill()
        if response.status in (403, 404):
            heart.refuse(f"refused ({response.status})")
        if response.status >= 400 and response.content_type != "application/json":
            # Not from the API server's own hand; kopf would write it to the log as it is.
            async with response:
                error = refusal(response.status, response.headers.get("Retry-After", ""), b"")
            await asyncio.sleep(error.retry_after)
            raise aiohttp.ClientConnectionError(str(error))
        return response

    async def _apart(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        pause = self._next.get(path, 0.0) - loop.time()
        if pause > 0:
            await asyncio.sleep(pause)
        self._next[path] = loop.time() + _APART
