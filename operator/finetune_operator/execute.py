"""The requests that carry out a decision. Each of them may have been made before.

A creation that finds the object in place has succeeded only if that object belongs to the same job,
by its uid, and is not being deleted. A deletion carries the uid of its pod, so that it never hits a
new object of the same name.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from finetune_api import reasons
from finetune_api.base import Object
from finetune_api.names import KIND
from finetune_client.errors import TRANSIENT, ApiError
from finetune_operator import jobs
from finetune_operator.plan.decision import Delete
from finetune_operator.plan.observe import Job, Refusal

_PARALLEL = 10
_PLURALS = {"Pod": "pods", "Service": "services"}
_Item = TypeVar("_Item")


class Requests(Protocol):
    """The requests that reconciling makes; finetune_client.api.Api documents each of them."""

    async def get(self, path: str, **query: str) -> Object:
        """GET an object."""

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        """GET a collection."""

    async def create(self, path: str, body: Object, **query: str) -> None:
        """POST an object."""

    async def post(self, path: str, body: Object, **query: str) -> Object:
        """POST an object and return what the server answers."""

    async def patch(self, path: str, body: Object) -> Object:
        """Apply a merge patch."""

    async def delete(self, path: str, body: Object) -> None:
        """DELETE an object."""


@contextmanager
def requested(what: str) -> Iterator[None]:
    """Note what was requested in the errors of requests: "create Pod a-1-0"."""
    try:
        yield
    except (ApiError, *TRANSIENT) as error:
        error.add_note(what)
        raise


def collection(item: Object) -> str:
    """Return the path of the collection that an object belongs to."""
    return f"/api/v1/namespaces/{item['metadata']['namespace']}/{_PLURALS[item['kind']]}"


class _RefusedError(Exception):
    """An object of a batch was refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


async def create(api: Requests, job: Job, items: list[Object]) -> Refusal | None:
    """Create the objects of a job and return why one of them was refused.

    Each batch is as large as all before it together: 1, 1, 2, 4, ... If a request is refused or
    fails, usually all would be. The batch is then ended and no other one is begun.
    """

    async def one(item: Object) -> None:
        if refusal := await _create(api, job, item):
            raise _RefusedError(refusal)

    done = 0
    while done < len(items):
        batch = items[done : 2 * done or 1]
        try:
            await in_parallel(batch, one)
        except _RefusedError as error:
            return error.refusal
        done += len(batch)
    return None


async def in_parallel(items: Sequence[_Item], act: Callable[[_Item], Awaitable[None]]) -> None:
    """Process items, several at a time. The first failure cancels what is under way."""
    if not items:
        return
    left = iter(items)

    async def work() -> None:
        for item in left:
            await act(item)

    tasks = [asyncio.create_task(work()) for _ in items[:_PARALLEL]]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _create(api: Requests, job: Job, item: Object) -> Refusal | None:
    with requested(f"create {item['kind']} {item['metadata']['name']}"):
        try:
            await api.create(collection(item), item, fieldValidation="Strict")
        except ApiError as error:
            if error.code == 409:
                return await _check_owner(api, job, item)
            return refusal_of(error)
    return None


def refusal_of(error: ApiError) -> Refusal:
    """Return why the API server refuses an object. Raises the error if it is not a refusal."""
    if error.code == 403:
        over = "exceeded quota: " in error.message
        return Refusal(reasons.QUOTA_EXCEEDED if over else reasons.FORBIDDEN, error.message[:1024])
    if error.code in (400, 422):
        return Refusal(reasons.INVALID_TEMPLATE, f"workers.template: {error.message}"[:1024])
    raise error


async def _check_owner(api: Requests, job: Job, item: Object) -> Refusal | None:
    name, kind = item["metadata"]["name"], item["kind"]
    live = await api.get(f"{collection(item)}/{name}")  # If it is gone by now, a retry creates it.
    return foreign(job, kind, live)


def foreign(job: Job, kind: str, live: Object) -> Refusal | None:
    """Return whose the object of a name is; None if it belongs to the job."""
    metadata, node = live["metadata"], live.get("spec", {}).get("nodeName")
    owners = [owner for owner in metadata.get("ownerReferences", []) if owner.get("controller")]
    if any(owner["uid"] == job.uid for owner in owners):
        return None
    name = metadata["name"]
    # A name belongs to one job at a time, so its other owners of that name do not exist any more.
    earlier = any((owner["kind"], owner["name"]) == (KIND, job.name) for owner in owners)
    if earlier or "deletionTimestamp" in metadata:
        where = f" on node {node}" if node else ""
        text = f"{kind} {name} of an earlier job{where} is still being deleted"
        return Refusal(reasons.WAITING_FOR_OLD_PODS, f"{text}; waiting until it is gone")
    text = f"{kind} {name} in namespace {job.namespace} does not belong to this job"
    return Refusal(reasons.NAME_TAKEN, f"{text}; delete it or give the job another name")


async def delete_job(api: Requests, job: Job) -> None:
    """Delete the job. The garbage collector deletes its pods and its Service."""
    body: Object = {"preconditions": {"uid": job.uid}, "propagationPolicy": "Background"}
    with requested(f"delete FineTuneJob {job.name}"):
        await _delete(api, jobs.path((job.namespace, job.name)), body)


async def delete(api: Requests, job: Job, to_delete: list[Delete]) -> None:
    """Delete pods, several at a time. One that cannot be deleted does not keep the others."""
    failed: list[BaseException] = []

    async def one(pod: Delete) -> None:
        body: Object = {"preconditions": {"uid": pod.uid}}
        if pod.grace is not None:
            body["gracePeriodSeconds"] = pod.grace
        try:
            with requested(f"delete Pod {pod.name}"):
                await _delete(api, f"/api/v1/namespaces/{job.namespace}/pods/{pod.name}", body)
        except (ApiError, *TRANSIENT) as error:
            failed.append(error)

    await in_parallel(to_delete, one)
    if failed:
        raise failed[0]


async def _delete(api: Requests, path: str, body: Object) -> None:
    try:
        await api.delete(path, body)
    except ApiError as error:
        if error.code not in (404, 409):  # It is gone, or another object has the name by now.
            raise
