"""Creates and deletes what a plan decided; tolerant of what was done before.

"Exists already" counts as done only when the live object is ours, of this job's uid, and not being
deleted. Deletes carry the uid: a new object of the same name is never hit.
"""

import asyncio

from finetune_api import reasons
from finetune_api.base import Object
from finetune_operator import jobs
from finetune_operator.kube import ApiError, Requests
from finetune_operator.plan.decision import Check, Delete
from finetune_operator.plan.observe import Job, Refusal

_PARALLEL = 10
_PLURALS = {"Pod": "pods", "Service": "services"}


def _collection(item: Object) -> str:
    return f"/api/v1/namespaces/{item['metadata']['namespace']}/{_PLURALS[item['kind']]}"


async def admit(kube: Requests, job: Job, check: Check) -> Refusal | None:
    """Ask for what a plan needs, without changing anything."""
    answers = await asyncio.gather(*(_find_claim(kube, job, claim) for claim in check.claims))
    refusal = next((answer for answer in answers if answer), None)
    if refusal is None and check.pod:
        return await _dry_run(kube, check.pod)
    return refusal


async def _find_claim(kube: Requests, job: Job, claim: str) -> Refusal | None:
    try:
        await kube.get(f"/api/v1/namespaces/{job.namespace}/persistentvolumeclaims/{claim}")
    except ApiError as error:
        if error.code != 404:
            raise
        text = f"PersistentVolumeClaim {claim} does not exist in namespace {job.namespace}"
        return Refusal(reasons.CLAIM_MISSING, f"{text}; create it, or correct the pvc:// address")
    return None


async def _dry_run(kube: Requests, pod: Object) -> Refusal | None:
    try:
        await kube.create(_collection(pod), pod, dryRun="All", fieldValidation="Strict")
    except ApiError as error:
        if error.code == 403:
            return Refusal(reasons.FORBIDDEN, error.message[:1024])
        if error.code in (400, 422):
            return Refusal(reasons.INVALID_TEMPLATE, f"workers.template: {error.message}"[:1024])
        if error.code != 409:  # the pod itself exists: nothing is wrong with it
            raise
    return None


async def create(kube: Requests, job: Job, items: list[Object]) -> Refusal | None:
    """The first one alone (when it is refused, so are the others), then several at once."""
    if not items:
        return None
    refusal = await _create(kube, job, items[0])
    if refusal:
        return refusal
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(item: Object) -> Refusal | None:
        async with slots:
            return await _create(kube, job, item)

    answers = await asyncio.gather(*(one(item) for item in items[1:]))
    return next((answer for answer in answers if answer), None)


async def _create(kube: Requests, job: Job, item: Object) -> Refusal | None:
    try:
        await kube.create(_collection(item), item, fieldValidation="Strict")
    except ApiError as error:
        if error.code == 403:
            return Refusal(reasons.FORBIDDEN, error.message[:1024])
        if error.code in (400, 422):
            return Refusal(reasons.INVALID_TEMPLATE, f"workers.template: {error.message}"[:1024])
        if error.code != 409:
            raise
        return await _taken(kube, job, item)
    return None


async def _taken(kube: Requests, job: Job, item: Object) -> Refusal | None:
    name, kind = item["metadata"]["name"], item["kind"]
    live = await kube.get(f"{_collection(item)}/{name}")  # 404, gone since: the retry creates it
    owners = [o["uid"] for o in live["metadata"].get("ownerReferences", []) if o.get("controller")]
    if job.uid in owners:
        return None
    if "deletionTimestamp" in live["metadata"]:
        text = f"{kind} {name} of an earlier job is still there; waiting for it to go"
        return Refusal(reasons.WAITING_FOR_OLD_PODS, text)
    text = f"{kind} {name} exists in namespace {job.namespace} and is not this job's"
    return Refusal(reasons.NAME_TAKEN, f"{text}; delete it or give the job another name")


async def delete_job(kube: Requests, job: Job) -> None:
    """The job itself; its pods and Service follow by their owner reference."""
    body: Object = {"preconditions": {"uid": job.uid}, "propagationPolicy": "Background"}
    try:
        await kube.delete(jobs.path((job.namespace, job.name)), body)
    except ApiError as error:
        if error.code not in (404, 409):
            raise


async def delete(kube: Requests, job: Job, doomed: list[Delete]) -> None:
    """All at once, bounded."""
    slots = asyncio.Semaphore(_PARALLEL)

    async def one(pod: Delete) -> None:
        body: Object = {"preconditions": {"uid": pod.uid}}
        if pod.grace is not None:
            body["gracePeriodSeconds"] = pod.grace
        async with slots:
            try:
                await kube.delete(f"/api/v1/namespaces/{job.namespace}/pods/{pod.name}", body)
            except ApiError as error:
                if error.code not in (404, 409):
                    raise

    await asyncio.gather(*(one(pod) for pod in doomed))
