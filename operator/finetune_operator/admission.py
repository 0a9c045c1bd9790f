"""Asks the API server what it would admit, before anything is committed or created."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_api import reasons
from finetune_api.base import Object
from finetune_client.errors import ApiError
from finetune_operator.execute import (
    Requests,
    collection,
    foreign,
    in_parallel,
    refusal_of,
    requested,
)
from finetune_operator.informer import path
from finetune_operator.plan import quota
from finetune_operator.plan.decision import Check
from finetune_operator.plan.observe import Job, Refusal
from finetune_operator.plan.quota import Demand

_log = logging.getLogger("finetune.admission")
_NO_DRY_RUN = "does not support dry run"  # part of the text of the API server about a webhook


@dataclass
class Admission:
    """Checks what a decision needs, without changing anything."""

    api: Requests
    _warned: bool = False  # that ResourceQuotas cannot be read

    async def check(
        self, job: Job, check: Check, ahead: Callable[[], Sequence[Demand]]
    ) -> Refusal | None:
        """Return why a decision cannot be carried out, or None.

        `ahead` returns the pods that other jobs are about to create.
        """
        claims = await asyncio.gather(*(self._find_claim(job, claim) for claim in check.claims))
        if refusal := next((claim for claim in claims if claim), None):
            return refusal
        pod, refusal = await self._dry_runs(check)
        if refusal and refusal.reason != reasons.QUOTA_EXCEEDED:
            return refusal
        if check.gang and pod:
            gang = Demand(pod, check.gang)
            quotas = await self._quotas(job.namespace)
            others = ahead() if quotas and not check.later else ()
            # The quotas show what the complete gang needs, a dry run only what one pod does.
            ever = check.later is not None
            refusal = quota.shortage(quotas, gang, others, ever=ever) or refusal
        return refusal or await self._find_taken(job, check.names)

    async def _dry_runs(self, check: Check) -> tuple[Object | None, Refusal | None]:
        """Return a worker, with what admission adds to it, and why a pod is refused."""
        pod, refusal = None, None
        if check.pod:
            pod, refusal = await self._dry_run(check.pod)
        if check.later and not refusal:
            pod, refusal = await self._dry_run(check.later)
            if refusal and refusal.reason == reasons.QUOTA_EXCEEDED:
                refusal = None  # It may have room again by then.
        return pod, refusal

    async def _dry_run(self, pod: Object) -> tuple[Object, Refusal | None]:
        with requested(f"admit Pod {pod['metadata']['name']} (dry run)"):
            try:
                query = {"dryRun": "All", "fieldValidation": "Strict"}
                return await self.api.post(collection(pod), pod, **query), None
            except ApiError as error:
                # A pod that exists was admitted before. A webhook with side effects cannot be
                # asked, so that only the creation shows what it answers.
                if error.code == 409 or (error.code == 400 and _NO_DRY_RUN in error.message):
                    return pod, None
                return pod, refusal_of(error)

    async def _find_claim(self, job: Job, claim: str) -> Refusal | None:
        where = f"/api/v1/namespaces/{job.namespace}/persistentvolumeclaims/{claim}"
        try:
            with requested(f"read PersistentVolumeClaim {claim}"):
                await self.api.get(where)
        except ApiError as error:
            if error.code != 404:
                raise
            text = f"PersistentVolumeClaim {claim} does not exist in namespace {job.namespace}"
            text += "; create it, or correct the pvc:// address"
            return Refusal(reasons.CLAIM_MISSING, text)
        return None

    async def _quotas(self, namespace: str) -> list[Object]:
        """Return the ResourceQuotas of a namespace; none if they may not be read."""
        try:
            with requested("list the ResourceQuotas"):
                found, _ = await self.api.list(f"/api/v1/namespaces/{namespace}/resourcequotas")
        except ApiError as error:
            if error.code not in (403, 404):
                raise
            if not self._warned:
                self._warned = True
                _log.warning("gangs begin without a check of the quotas: %s", error)
            return []
        return found

    async def _find_taken(self, job: Job, names: Sequence[str]) -> Refusal | None:
        """Return which of the names a pod of another owner has."""
        found: list[Refusal] = []

        async def one(name: str) -> None:
            try:
                with requested(f"read Pod {name}"):
                    live = await self.api.get(f"{path(job.namespace)}/{name}")
            except ApiError as error:
                if error.code != 404:
                    raise
                return
            if taken := foreign(job, "Pod", live):
                found.append(taken)

        await in_parallel(names, one)
        # One that the user must delete is shown first, since others go away by themselves.
        return min(found, key=lambda refusal: refusal.reason != reasons.NAME_TAKEN, default=None)
