"""The watch on FineTuneJobs, by kopf's `on.event` handler only.

kopf's create, update, timer, daemon and index handlers are not used: they patch annotations and
force finalizers, and an index over pods takes quadratic time to fill (docs/design/adr/0002).

kopf gives up on some responses of an API server that starts, stops or is overloaded. Here requests
are repeated without end, and kopf is started again if it ends.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, cast

import aiohttp
import kopf

from finetune_api.base import API_GROUP, API_VERSION, VERSION, Object
from finetune_api.names import PLURAL
from finetune_client.api import PAGE, Api, Count, counted
from finetune_client.backoff import backoff
from finetune_client.decode import decode_list
from finetune_client.errors import TRANSIENT, ApiError, error_from_response
from finetune_client.session import open_session
from finetune_operator import jobs as paths
from finetune_operator.health import Health, Heart
from finetune_operator.jobs import Jobs
from finetune_operator.settings import Settings
from finetune_operator.versions import Version, key_of

_log = logging.getLogger("finetune.watch")
_SERVER_TIMEOUT = 240  # s after which the server ends a watch, and kopf starts the next
_LATE = 400.0  # s without activity after which a watch is late
_VERSION = "version"  # key of a compressed version in a listed object
_INTERVAL = 1.0  # s between starts of watches, as streams that end at once must not busy-loop
_IDLE = 0.2  # s
_STEADY = 60.0  # s that kopf must run to reset the back-off of its restarts


class _Backoffs:
    """kopf's delays between repeated requests; they have no end, so that it never gives up."""

    def __iter__(self) -> Iterator[float]:
        return backoff(0.5, 8.0)


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps kopf from copying every object to find changes, for handlers that are not used."""

    def build(self, **_: Any) -> dict[str, Any]:
        """Return nothing to compare."""
        return {}

    def fetch(self, **_: Any) -> None:
        """Return that nothing was stored."""

    def store(self, **_: Any) -> None:
        """Store nothing: the operator does not write annotations."""


async def run(
    api: Api,
    jobs: Jobs,
    configuration: Any,
    settings: Settings,
    health: Health,
    started: Callable[[], None],
    count: Count,
) -> None:
    """Fill the cache until cancelled. `started` is called once kopf has installed its signals."""
    hearts = {
        paths.collection(namespace): health.heart(
            f"watch on jobs in {namespace or 'all namespaces'}", _LATE, filled=False, kind="jobs"
        )
        for namespace in settings.namespaces or (None,)
    }
    loop = asyncio.get_running_loop()
    delays = backoff(1.0, 30.0)
    while True:
        begin = loop.time()
        try:
            await _until_installed(api, hearts)
            await _run_kopf(
                settings, _registry(jobs, configuration, _Observer(hearts, count)), started
            )
        except Exception as error:  # kopf raises what any of its tasks raised.
            _log.warning("the watch on jobs ended (%s); it is started again", error)
        if loop.time() - begin > _STEADY:
            delays = backoff(1.0, 30.0)
        await asyncio.sleep(next(delays))


async def _until_installed(api: Api, hearts: dict[str, Heart]) -> None:
    """Wait until the resource exists. kopf would never watch it if it started before."""
    for delay in backoff(1.0, 8.0):
        for heart in hearts.values():
            heart.beat()
        for collection in hearts:  # Any of them, because some namespaces may be forbidden.
            try:
                await api.get(collection, limit="1")
                return
            except ApiError as error:
                text = f"{API_VERSION} {PLURAL}: {error}"
                hint = "; is the CustomResourceDefinition installed?" if error.code == 404 else ""
                _log.warning("jobs cannot be listed: %s%s", text, hint)
            except TRANSIENT as error:
                _log.warning("the API server does not answer (%r); trying again", error)
        await asyncio.sleep(delay)


async def _run_kopf(
    settings: Settings, registry: kopf.OperatorRegistry, started: Callable[[], None]
) -> None:
    """Run kopf until one of its tasks ends.

    `kopf.operator` is not used, because it cancels tasks that it did not start.
    """
    tasks = await kopf.spawn_tasks(
        registry=registry,
        settings=_kopf_settings(settings),
        standalone=True,
        # The identity is for peering, which is off. kopf would derive it from the name of the user,
        # and the user of a container may have no name.
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
    chosen.scanning.disabled = True  # It would need rights on CRDs and namespaces.
    chosen.watching.server_timeout = _SERVER_TIMEOUT
    chosen.watching.chunk_size = PAGE
    # Seconds for which kopf keeps a task, and the last event, for each object that had one.
    chosen.queueing.idle_timeout = _IDLE
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.networking.request_timeout = 10
    chosen.networking.error_backoffs = _Backoffs()
    # It would end the process when kopf is restarted.
    chosen.process.ultimate_exiting_timeout = None
    if settings.selector.text:
        chosen.watching.label_selectors[API_GROUP, PLURAL] = settings.selector.text
    return chosen


def _registry(jobs: Jobs, configuration: Any, observer: "_Observer") -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    # Coroutines, because kopf runs plain functions in threads, and the queue belongs to the loop.
    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        session = open_session(configuration, observer, response_class=_Response)
        return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session)

    @kopf.on.event(API_GROUP, VERSION, PLURAL, registry=registry)
    async def event(event: kopf.RawEvent, **_: Any) -> None:
        item = cast(dict[str, Any], event["object"])
        if event["type"] == "DELETED":
            jobs.remove(key_of(item), item["metadata"]["uid"])
        elif _VERSION in item:
            jobs.store(item[_VERSION])
        else:
            jobs.take(item)
        for name in ("spec", "status", _VERSION):
            item.pop(name, None)  # kopf keeps the event for a while.

    return registry


class _Response(aiohttp.ClientResponse):
    """A response whose list of jobs is decoded and compressed item by item."""

    async def json(self, **_: Any) -> Any:
        """Return the content, as kopf asks for it."""
        return decode_list(await self.read(), _compressed)


def _compressed(item: Object) -> Object:
    """Return of a job what kopf reads, and the version that the cache keeps."""
    metadata = {name: item["metadata"][name] for name in ("namespace", "name", "uid")}
    return {"metadata": metadata, _VERSION: Version.of(item)}


class _Observer:
    """A middleware for kopf's requests: beats the hearts, counts, and delays repeated watches."""

    def __init__(self, hearts: dict[str, Heart], count: Count) -> None:
        self._hearts, self._count = hearts, count
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
            await self._delay(request.url.path)
        verb = "watch" if watches else "list"
        response = await counted(self._count, verb, handler(request))
        heart.beat()
        if response.status == 200 and watches:
            heart.fill()  # The watch begins when the cache has all pages of the list.
        if response.status in (403, 404):
            heart.refuse(f"refused ({response.status})")
        if response.status >= 400 and response.content_type != "application/json":
            # This is not a response of the API server, and kopf would log it as it is.
            async with response:
                error = error_from_response(
                    response.status, response.headers.get("Retry-After", ""), b""
                )
            await asyncio.sleep(error.retry_after)
            raise aiohttp.ClientConnectionError(str(error))
        return response

    async def _delay(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        delay = self._next.get(path, 0.0) - loop.time()
        if delay > 0:
            await asyncio.sleep(delay)
        self._next[path] = loop.time() + _INTERVAL
