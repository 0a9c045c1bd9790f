"""Mistakes that an operator could make. Each must be noticed, or the invariants prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.status import FineTuneJobStatus
from finetune_operator import execute, reconcile
from finetune_operator.plan import attempts, ending, failure, next_attempt, observe, suspend, usage
from finetune_operator.plan.decision import Decision, Delete
from finetune_operator.plan.observe import Job
from finetune_operator.reconcile import Reconciler
from finetune_operator.status import Urgency
from tests.operator.simulator.api import Api

Patch = pytest.MonkeyPatch
MUTATIONS: dict[str, Callable[[Patch], None]] = {}


def mutation(change: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Named by its function."""
    MUTATIONS[change.__name__.replace("_", " ")] = change
    return change


def _wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """`around` gets the original first."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **more: around(original, *args, **more))


@mutation
def a_status_is_written_without_its_version(patch: Patch) -> None:
    async def blind(original: Any, self: Any, path: str, body: Any) -> Any:
        return await original(self, path, {k: v for k, v in body.items() if k != "metadata"})

    _wrap(patch, Api, "patch", blind)


@mutation
def a_plan_is_not_made_again_from_a_live_read(patch: Patch) -> None:
    async def cached(self: Reconciler, key: Any) -> Job | None:
        return self.jobs.get(key)

    patch.setattr(Reconciler, "_refresh", cached)


@mutation
def any_checkpoint_forgives(patch: Patch) -> None:
    def forgive(original: Any, *args: Any) -> FineTuneJobStatus:
        status: FineTuneJobStatus = original(*args)
        if status.latest_checkpoint:
            return status.replace(counted_restarts=0, last_failure_step=None)
        return status

    _wrap(patch, attempts, "merge", forgive)


@mutation
def the_next_attempt_does_not_wait_for_the_pods_before(patch: Patch) -> None:
    patch.setattr(observe.Pod, "over", lambda self, now: True)


@mutation
def a_terminating_pod_counts_as_over(patch: Patch) -> None:
    _wrap(
        patch,
        observe.Pod,
        "over",
        lambda original, self, now: bool(self.deletion) or original(self, now),
    )


@mutation
def pods_are_deleted_before_the_outcome_is_written(patch: Patch) -> None:
    def hasty(original: Any, world: Any, status: Any, pods: Any, *more: Any) -> Decision:
        alive = [pod for pod in pods if not pod.over(world.now) and not pod.deletion]
        if alive:
            doomed = [Delete(pod.name, pod.uid, 10) for pod in alive]
            return Decision(world.job.status, delete=doomed)
        return original(world, status, pods, *more)

    _wrap(patch, ending, "close", hasty)


@mutation
def a_preemption_counts_as_a_restart(patch: Patch) -> None:
    def counts(original: Any, *args: Any, **more: Any) -> Any:
        verdict = original(*args, **more)
        return verdict and replace(verdict, counted=verdict.outcome != "Succeeded")

    _wrap(patch, failure, "verdict", counts)


@mutation
def a_failure_does_not_count(patch: Patch) -> None:
    def forgives(original: Any, *args: Any, **more: Any) -> Any:
        decision = original(*args, **more)
        return replace(decision, status=decision.status.replace(restarts=0))

    _wrap(patch, next_attempt, "_commit", forgives)


@mutation
def suspended_is_said_while_pods_exist(patch: Patch) -> None:
    _wrap(
        patch,
        suspend,
        "hold",
        lambda original, world, status: original(replace(world, pods=()), status),
    )


@mutation
def a_cache_is_believed_that_no_pod_is_left(patch: Patch) -> None:
    """The pinned history that notices it is at a certain call: count again when it does not."""
    _wrap(
        patch,
        suspend,
        "hold",
        lambda original, world, status: replace(original(world, status), commits=False),
    )


@mutation
def a_vanished_pod_is_called_exact(patch: Patch) -> None:
    def sure(original: Any, *args: Any) -> Any:
        return original(*args).replace(estimated=False)

    _wrap(patch, usage, "account", sure)
    _wrap(patch, usage, "settle", sure)


@mutation
def an_attempt_is_settled_from_the_pods_that_are_left(patch: Patch) -> None:
    def forgetful(original: Any, attempt: Any, pods: Any) -> Any:
        left = [pod for pod in pods if not pod.gone and pod.ended]
        seconds = sum(int((p.ended.finished - p.scheduled).total_seconds()) for p in left)
        attempt = original(attempt, pods)
        return attempt.replace(device_seconds=seconds * attempt.devices_per_worker)

    _wrap(patch, usage, "settle", forgetful)


@mutation
def a_finished_job_is_planned_again(patch: Patch) -> None:
    patch.setattr(FineTuneJobStatus, "finished", False)


@mutation
def every_look_writes(patch: Patch) -> None:
    patch.setattr(reconcile, "urgency", lambda old, new: Urgency.NOW)


@mutation
def a_name_that_is_taken_counts_as_created(patch: Patch) -> None:
    async def done(*_: Any) -> None:
        return None

    patch.setattr(execute, "_taken", done)


@mutation
def pods_are_made_before_the_attempt_is_written(patch: Patch) -> None:
    async def first(original: Any, self: Any, key: Any, world: Any, decision: Decision) -> Any:
        if decision.check and decision.check.pod and decision.commits:
            await execute.create(self.kube, world.job, [decision.check.pod])
        return await original(self, key, world, decision)

    _wrap(patch, Reconciler, "_write", first)


@mutation
def a_gang_is_stopped_without_a_word(patch: Patch) -> None:
    def silent(original: Any, world: Any, status: Any, wish: Any) -> Decision:
        pods = [p for p in world.gang(status.attempt) if not (p.gone or p.deletion)]
        return Decision(status, delete=[Delete(pod.name, pod.uid) for pod in pods])

    _wrap(patch, ending, "ask", silent)


@mutation
def an_error_of_the_server_is_not_tried_again(patch: Patch) -> None:
    async def gives_up(original: Any, self: Any, key: Any) -> Any:
        try:
            return await original(self, key)
        except reconcile.RetryError:
            return None

    _wrap(patch, Reconciler, "reconcile", gives_up)


@mutation
def a_pod_that_goes_is_deleted_again(patch: Patch) -> None:
    def again(original: Any, world: Any, status: Any, gang: Any, settings: Any) -> Decision:
        decision = original(world, status, gang, settings)
        going = [Delete(pod.name, pod.uid) for pod in gang if pod.deletion and not pod.gone]
        return replace(decision, delete=[*decision.delete, *going])

    _wrap(patch, ending, "stop", again)


@mutation
def an_attempt_ends_when_a_node_says_so(patch: Patch) -> None:
    def believes(original: Any, world: Any, *args: Any) -> Decision:
        decision = original(world, *args)
        attempt = decision.status.attempts[-1]
        ends = [p.ended.finished for p in world.gang(attempt.number) if p.ended]
        if attempt.completion_time is None or not ends:
            return decision
        attempts = [*decision.status.attempts[:-1], attempt.replace(completion_time=max(ends))]
        return replace(decision, status=decision.status.replace(attempts=attempts))

    _wrap(patch, ending, "close", believes)


@mutation
def a_look_is_forgotten_after_an_attempt_was_committed(patch: Patch) -> None:
    def once(original: Any, *args: Any, **more: Any) -> Decision:
        return replace(original(*args, **more), commits=False, requeue_after=None)

    _wrap(patch, next_attempt, "_commit", once)
