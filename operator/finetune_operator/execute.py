"""The requests that carry out a decision. Each of them may have been made before.

A creation that finds the object in place has succeeded only if that object belongs to the same job,
by its uid, and is not being deleted. A deletion carries the uid of its pod, so that it never hits a
new object of the same name.
"""

import asyncio
from typing import Protocol

from finetune_api import reasons
from finetune_api.base import Object
from finetune_client.errors import ApiError
from finetune_operator import jobs
from finetune_operator.plan.decision import Check, Delete
from finetune_operator.plan.observe import Job, Refusal

_PARALLEL = 10
_PLURALS = {"Pod": "pods", "Service": "services"}


class Requests(Protocol):
    """The requests that reconciling makes; finetune_client.api.Api documents each of them."""

    async def get(self, path: str, **query: str) -> Object:
        """GET an object."""

    async def list(self, path: str, **query: str) -> tuple[list[Object], str]:
        """GET a collection."""

    async def create(self, path: str, body: Object, **query: str) -> None:
        """POST an object."""

    async def patch(self, path: str, body: Object) -> Object:
        """Apply a merge patch."""

    async def delete(self, path: str, body: Object) -> None:
        """DELETE an object."""


def _collection(item: Object) -> str:
    return f"/api/v1/namespaces/{item['metadata']['namespace']}/{_PLURALS[item['kind']]}"


async def admit(api: Requests, job: Job, check: Check) -> Refusal | None:
    """Check what a decision needs, without changing anything; return why it cannot be done."""
    results = await asyncio.gather(*(_find_claim(api, job, claim) for claim in check.claims))
    refusal = next((result for result in results if result), None)
    if refusal is None and check.pod:
        return await _dry_run(api, check.pod)
    return refusal


async def _find_claim(api: Requests, job: Job, claim: str) -> Refusal | None:
    try:
        await api.get(f"/api/v1/namespaces/{job.namespace}/persistentvolumeclaims/{claim}")
    except ApiError as error:
        if error.code != 404:
            raise
        text = f"PersistentVolumeClaim {claim} does not exist in namespace {job.namespace}"
        return Refusal(reasons.CLAIM_MISSING, f"{text}; create it, or correct the pvc:// address")
    return None


async def _dry_run(api: Requests, pod: Object) -> Refusal | None:
    try:
        await api.create(_collection(pod), pod, dryRun="All", fieldValidation="Strict")
    except ApiError as error:
        if error.code != 409:  # The pod exists, so it was admitted before.
            return _refusal(error)
    return None


async def create(api: Requests, job: Job, items: list[Object]) -> Refusal | None:
    """Create the objects of a job and return why one of them was refused.

    The first one is created alone, because a refusal usually applies to all of them; then several
    are created at a time.
    """
    if not items:
        return None
    refusal = await _create(api, job, items[0])
    if refusal:
        return refusal
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(item: Object) -> Refusal | None:
        async with slots:
            return await _create(api, job, item)

    results = await asyncio.gather(*(one(item) for item in items[1:]))
    return next((result for result in results if result), None)


async def _create(api: Requests, job: Job, item: Object) -> Refusal | None:
    try:
        await api.create(_collection(item), item, fieldValidation="Strict")
    except ApiError as error:
        if error.code == 409:
            return await _check_owner(api, job, item)
        return _refusal(error)
    return None


def _refusal(error: ApiError) -> Refusal:
    """Return why the API server refuses an object. Raises the error if it is not a refusal."""
    if error.code == 403:
        return Refusal(reasons.FORBIDDEN, error.message[:1024])
    if error.code in (400, 422):
        return Refusal(reasons.INVALID_TEMPLATE, f"workers.template: {error.message}"[:1024])
    raise error


async def _check_owner(api: Requests, job: Job, item: Object) -> Refusal | None:
    name, kind = item["metadata"]["name"], item["kind"]
    live = await api.get(f"{_collection(item)}/{name}")  # If it is gone by now, a retry creates it.
    owners = [o["uid"] for o in live["metadata"].get("ownerReferences", []) if o.get("controller")]
    if job.uid in owners:
        return None
    if "deletionTimestamp" in live["metadata"]:
        text = f"{kind} {name} of an earlier job is still being deleted; waiting until it is gone"
        return Refusal(reasons.WAITING_FOR_OLD_PODS, text)
    text = f"{kind} {name} in namespace {job.namespace} does not belong to this job"
    return Refusal(reasons.NAME_TAKEN, f"{text}; delete it or give the job another name")


async def delete_job(api: Requests, job: Job) -> None:
    """Delete the job. The garbage collector deletes its pods and its Service."""
    body: Object = {"preconditions": {"uid": job.uid}, "propagationPolicy": "Background"}
    try:
        await api.delete(jobs.path((job.namespace, job.name)), body)
    except ApiError as error:
        if error.code not in (404, 409):
            raise


async def delete(api: Requests, job: Job, to_delete: list[Delete]) -> None:
    """Delete pods, several at a time."""
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(pod: Delete) -> None:
        body: Object = {"preconditions": {"uid": pod.uid}}
        if pod.grace is not None:
            body["gracePeriodSeconds"] = pod.grace
        async with slots:
            try:
                await api.delete(f"/api/v1/namespaces/{job.namespace}/pods/{pod.name}", body)
            except ApiError as error:
                if error.code not in (404, 409):
                    raise

    await asyncio.gather(*(one(pod) for pod in to_delete))
