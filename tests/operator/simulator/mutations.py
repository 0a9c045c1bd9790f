"""Mistakes that an operator could make. Each must be detected, or the invariants prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from finetune_api import run
from finetune_api.status import FineTuneJobStatus
from finetune_operator import admission, execute, failures, reconcile
from finetune_operator.informer import Pods
from finetune_operator.plan import (
    attempts,
    avoided_nodes,
    configuration,
    corrections,
    deadlines,
    describe,
    ending,
    export,
    first_step,
    gang,
    gang_text,
    incomplete_gang,
    interruption,
    next_attempt,
    nodes,
    observe,
    outcomes,
    prepare,
    quota,
    restart,
    suspend,
    usage,
)
from finetune_operator.plan.decision import Decision, Delete
from finetune_operator.plan.observe import Job
from finetune_operator.plan.pod_status import TERMINAL, PodStatus
from finetune_operator.pod_events import PodEvents
from finetune_operator.reconcile import Reconciler
from finetune_operator.status import Urgency
from tests.operator.simulator.api import Api

Patch = pytest.MonkeyPatch
MUTATIONS: dict[str, Callable[[Patch], None]] = {}


def mutation(change: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Register a mutation under its function's name."""
    MUTATIONS[change.__name__.replace("_", " ")] = change
    return change


def _wrap(patch: Patch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function by `wrapper`, which gets the original as its first argument."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **more: wrapper(original, *args, **more))


@mutation
def a_status_is_written_without_its_version(patch: Patch) -> None:
    async def unguarded(original: Any, self: Any, path: str, body: Any) -> Any:
        return await original(self, path, {k: v for k, v in body.items() if k != "metadata"})

    _wrap(patch, Api, "patch", unguarded)


@mutation
def a_decision_is_not_repeated_from_a_live_read(patch: Patch) -> None:
    async def cached(self: Reconciler, key: Any) -> Job | None:
        return self.jobs.get(key)

    patch.setattr(Reconciler, "_read_live", cached)


@mutation
def any_checkpoint_resets_the_counted_restarts(patch: Patch) -> None:
    def reset(original: Any, *args: Any) -> FineTuneJobStatus:
        status: FineTuneJobStatus = original(*args)
        if status.latest_checkpoint:
            return status.replace(counted_restarts=0, last_failure_step=None)
        return status

    _wrap(patch, attempts, "merge_report", reset)


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
    def delete_first(original: Any, world: Any, status: Any, pods: Any, *more: Any) -> Decision:
        alive = [pod for pod in pods if not pod.over(world.now) and not pod.deletion]
        if alive:
            deletions = [Delete(pod.name, pod.uid, 10) for pod in alive]
            return Decision(world.job.status, delete=deletions)
        return original(world, status, pods, *more)

    _wrap(patch, ending, "close", delete_first)


@mutation
def a_preemption_counts_as_a_restart(patch: Patch) -> None:
    def count(original: Any, *args: Any, **more: Any) -> Any:
        verdict = original(*args, **more)
        if verdict is None or verdict.outcome == "Succeeded":
            return verdict
        return replace(verdict, ending=replace(verdict.ending, counted=True))

    _wrap(patch, gang, "verdict", count)


@mutation
def a_failure_does_not_count(patch: Patch) -> None:
    def reset(original: Any, *args: Any, **more: Any) -> Any:
        decision = original(*args, **more)
        return replace(decision, status=decision.status.replace(restarts=0))

    _wrap(patch, next_attempt, "_commit", reset)


@mutation
def suspended_is_reported_while_pods_exist(patch: Patch) -> None:
    _wrap(
        patch,
        suspend,
        "hold",
        lambda original, world, status: original(replace(world, pods=()), status),
    )


@mutation
def suspended_is_reported_from_a_cache(patch: Patch) -> None:
    """The pinned history that detects it acts at a certain call: count again if it does not."""
    _wrap(
        patch,
        suspend,
        "hold",
        lambda original, world, status: replace(original(world, status), commits=False),
    )


@mutation
def a_vanished_pod_is_called_exact(patch: Patch) -> None:
    def not_estimated(original: Any, *args: Any) -> Any:
        return original(*args).replace(estimated=False)

    _wrap(patch, usage, "account", not_estimated)
    _wrap(patch, usage, "finalize", not_estimated)


@mutation
def an_attempt_is_finalized_from_the_pods_that_are_left(patch: Patch) -> None:
    def only_existing(original: Any, attempt: Any, pods: Any) -> Any:
        left = [pod for pod in pods if not pod.gone and pod.ended]
        seconds = sum(int((p.ended.finished - p.scheduled).total_seconds()) for p in left)
        attempt = original(attempt, pods)
        return attempt.replace(device_seconds=seconds * attempt.devices_per_worker)

    _wrap(patch, usage, "finalize", only_existing)


@mutation
def a_finished_job_is_planned_again(patch: Patch) -> None:
    patch.setattr(FineTuneJobStatus, "finished", False)


@mutation
def every_reconciliation_writes(patch: Patch) -> None:
    patch.setattr(reconcile, "urgency", lambda old, new: Urgency.NOW)


@mutation
def a_name_that_is_taken_counts_as_created(patch: Patch) -> None:
    async def ignore(*_: Any) -> None:
        return None

    patch.setattr(execute, "_check_owner", ignore)


@mutation
def a_gang_is_created_in_one_batch(patch: Patch) -> None:
    async def all_at_once(api: Any, job: Any, items: Any) -> Any:
        refusals = [await execute._create(api, job, item) for item in items]
        return next((refusal for refusal in refusals if refusal), None)

    patch.setattr(execute, "create", all_at_once)


@mutation
def a_gang_begins_while_one_of_its_names_is_taken(patch: Patch) -> None:
    async def none(*_: Any) -> None:
        return None

    patch.setattr(admission.Admission, "_find_taken", none)


@mutation
def a_gang_begins_without_room_for_all_of_it(patch: Patch) -> None:
    patch.setattr(quota, "shortage", lambda *_, **__: None)


@mutation
def an_event_ends_the_pause_after_a_refusal(patch: Patch) -> None:
    patch.setattr(failures.Pauses, "left", lambda *_: 0.0)


@mutation
def a_request_that_keeps_failing_is_not_shown(patch: Patch) -> None:
    patch.setattr(failures.Failures, "shown", lambda *_: None)


@mutation
def a_message_is_written_at_once(patch: Patch) -> None:
    _wrap(
        patch,
        reconcile,
        "urgency",
        lambda original, old, new: (
            Urgency.NOW if old.message != new.message else original(old, new)
        ),
    )


@mutation
def pods_are_created_before_the_attempt_is_written(patch: Patch) -> None:
    async def create_first(
        original: Any, self: Any, key: Any, world: Any, decision: Decision
    ) -> Any:
        if decision.check and decision.check.pod and decision.commits:
            await execute.create(self.api, world.job, [decision.check.pod])
        return await original(self, key, world, decision)

    _wrap(patch, Reconciler, "_write", create_first)


@mutation
def a_gang_is_stopped_before_the_reason_is_written(patch: Patch) -> None:
    def delete_only(original: Any, world: Any, status: Any, request: Any) -> Decision:
        pods = [p for p in world.gang(status.attempt) if not (p.gone or p.deletion)]
        return Decision(status, delete=[Delete(pod.name, pod.uid) for pod in pods])

    _wrap(patch, ending, "request_stop", delete_only)


@mutation
def an_error_of_the_server_is_not_tried_again(patch: Patch) -> None:
    async def give_up(original: Any, self: Any, key: Any) -> Any:
        try:
            return await original(self, key)
        except reconcile.RetryError:
            return None

    _wrap(patch, Reconciler, "reconcile", give_up)


@mutation
def a_terminating_pod_is_deleted_again(patch: Patch) -> None:
    def delete_again(original: Any, world: Any, status: Any, gang: Any, settings: Any) -> Decision:
        decision = original(world, status, gang, settings)
        terminating = [Delete(pod.name, pod.uid) for pod in gang if pod.deletion and not pod.gone]
        return replace(decision, delete=[*decision.delete, *terminating])

    _wrap(patch, ending, "stop", delete_again)


@mutation
def an_attempt_ends_by_the_clock_of_a_node(patch: Patch) -> None:
    def use_node_clock(original: Any, world: Any, *args: Any) -> Decision:
        decision = original(world, *args)
        attempt = decision.status.attempts[-1]
        ends = [p.ended.finished for p in world.gang(attempt.number) if p.ended]
        if attempt.completion_time is None or not ends:
            return decision
        attempts = [*decision.status.attempts[:-1], attempt.replace(completion_time=max(ends))]
        return replace(decision, status=decision.status.replace(attempts=attempts))

    _wrap(patch, ending, "close", use_node_clock)


@mutation
def a_committed_attempt_is_not_planned_again(patch: Patch) -> None:
    def no_requeue(original: Any, *args: Any, **more: Any) -> Decision:
        return replace(original(*args, **more), commits=False, requeue_after=None)

    _wrap(patch, next_attempt, "_commit", no_requeue)


@mutation
def missing_pods_are_rendered_from_the_edited_spec(patch: Patch) -> None:
    patch.setattr(configuration, "changed", lambda job: False)


@mutation
def pods_with_another_configuration_belong_to_the_gang(patch: Patch) -> None:
    patch.setattr(configuration, "stop_requests", lambda *_: [])


@mutation
def a_sidecar_of_the_prepare_pod_runs_on(patch: Patch) -> None:
    patch.setattr(gang, "_no_longer_needed", lambda *_: [])


@mutation
def a_pod_is_over_only_by_its_phase(patch: Patch) -> None:
    patch.setattr(observe.Pod, "finished", property(lambda pod: pod.phase in TERMINAL))


@mutation
def a_pod_is_over_only_by_its_containers(patch: Patch) -> None:
    patch.setattr(observe.Pod, "finished", property(lambda pod: pod.containers_ended))


@mutation
def a_pod_of_unknown_end_ended_when_it_was_bound(patch: Patch) -> None:
    original = PodStatus.released

    def released(status: PodStatus) -> Any:
        bound = status.conditions.get("PodScheduled", {}).get("lastTransitionTime")
        early = observe.parse_time(bound) if status.finished else None
        return original.fget(status) or early  # type: ignore[attr-defined]

    patch.setattr(PodStatus, "released", property(released))


@mutation
def usage_is_computed_anew_from_the_pods_that_are_known(patch: Patch) -> None:
    def anew(original: Any, attempt: Any, *more: Any) -> Any:
        forgotten = {"device_seconds": 0, "vanished_device_seconds": 0, "vanished_workers": 0}
        return original(attempt.replace(**forgotten), *more)

    _wrap(patch, usage, "account", anew)


@mutation
def a_pod_that_never_ran_costs_nothing(patch: Patch) -> None:
    _wrap(
        patch,
        usage,
        "_seconds",
        lambda original, pod, until: 0 if pod.failure else original(pod, until),
    )


@mutation
def a_gang_of_which_a_worker_has_failed_is_shown_as_running(patch: Patch) -> None:
    patch.setattr(interruption, "situation", lambda attempt, gang: None)


@mutation
def the_events_of_pods_are_not_read(patch: Patch) -> None:
    async def skip(*_: Any) -> None:
        return None

    patch.setattr(PodEvents, "read", skip)


@mutation
def a_node_that_does_not_answer_is_not_named(patch: Patch) -> None:
    patch.setattr(gang_text, "silent", lambda gang: [])
    patch.setattr(nodes, "silence", lambda pod: None)
    patch.setattr(nodes, "place", lambda pod: pod.name)


@mutation
def a_pod_without_its_label_is_forgotten(patch: Patch) -> None:
    patch.setattr(Pods, "unproven", lambda *_: [])


@mutation
def a_pod_without_its_label_is_not_read_again(patch: Patch) -> None:
    patch.setattr(Pods, "unlabelled", lambda *_: [])


@mutation
def a_pod_is_identified_by_its_labels(patch: Patch) -> None:
    def by_labels(original: Any, job: Any, name: Any, labels: Any) -> Any:
        return original("", name, labels)

    _wrap(patch, observe, "_identity", by_labels)


# Gangs that do not become complete, and causes outside of the job


@mutation
def an_incomplete_gang_is_judged_like_a_complete_one(patch: Patch) -> None:
    def as_complete(attempt: Any, pods: Any, now: Any) -> Any:
        return gang.verdict(pods, attempt.workers, attempt.created, now)

    patch.setattr(incomplete_gang, "verdict", as_complete)


@mutation
def a_worker_that_gives_up_for_lack_of_a_peer_has_failed(patch: Patch) -> None:
    patch.setattr(incomplete_gang, "misses_a_peer", lambda code: False)


@mutation
def an_end_after_another_start_completes_the_gang(patch: Patch) -> None:
    def counts_ends(attempt: Any, pods: Any) -> bool:
        return sum(1 for pod in pods if pod.running or pod.ended) == attempt.workers

    patch.setattr(incomplete_gang, "is_complete", counts_ends)


@mutation
def a_pod_that_a_node_refuses_has_failed_by_itself(patch: Patch) -> None:
    patch.setattr(incomplete_gang, "by_a_node", lambda reason: False)


@mutation
def attempts_that_are_not_counted_follow_at_once(patch: Patch) -> None:
    def without(original: Any, status: Any, verdict: Any, **more: Any) -> Any:
        found = original(status, verdict, **more)
        released = verdict.outcome == "Released"
        return replace(found, at=more["now"]) if released else found

    _wrap(patch, restart, "decide", without)


@mutation
def the_back_off_after_releases_does_not_grow(patch: Patch) -> None:
    patch.setattr(restart, "_releases", lambda status: 0)


@mutation
def a_refusing_node_is_not_recorded(patch: Patch) -> None:
    patch.setattr(avoided_nodes, "after", lambda status, verdict: status.avoided_nodes)


@mutation
def a_worker_without_its_image_is_waited_for_without_a_limit(patch: Patch) -> None:
    def only_running(original: Any, policy: Any, status: Any, pods: Any, refused: Any) -> Any:
        return original(policy, status, [replace(pod, waiting=None) for pod in pods], refused)

    _wrap(patch, incomplete_gang, "stop_requests", only_running)


@mutation
def a_gang_waits_for_a_pod_on_a_dead_node(patch: Patch) -> None:
    _wrap(
        patch,
        incomplete_gang,
        "_is_interrupted",
        lambda original, pod, attempt: bool(pod.ended) and original(pod, attempt),
    )


@mutation
def a_gang_that_has_nothing_to_save_waits_for_a_lost_worker(patch: Patch) -> None:
    patch.setattr(first_step, "verdict", lambda *_: None)


@mutation
def a_gang_whose_reports_do_not_arrive_has_nothing_to_save(patch: Patch) -> None:
    patch.setattr(first_step, "_is_proved", lambda *_: True)


@mutation
def workers_that_ended_before_an_export_and_were_collected_are_lost(patch: Patch) -> None:
    patch.setattr(export, "overlooked", lambda *_: set())


@mutation
def an_export_is_not_possible_before_its_first_report(patch: Patch) -> None:
    patch.setattr(export, "_is_possible", lambda *_: False)


@mutation
def workers_of_unknown_end_matter_during_an_export(patch: Patch) -> None:
    patch.setattr(export, "relevant", lambda world, status, gang: gang)


@mutation
def the_result_of_an_export_is_not_read(patch: Patch) -> None:
    patch.setattr(ending, "termination_result", lambda gang: None)
    patch.setattr(next_attempt, "termination_result", lambda gang: None)


@mutation
def the_cause_of_a_back_off_is_forgotten(patch: Patch) -> None:
    def forgotten(original: Any, status: Any) -> Any:
        return original(status.replace(prepare_problem=None))

    _wrap(patch, prepare, "_backing_off", forgotten)


@mutation
def a_save_that_failed_is_not_shown(patch: Patch) -> None:
    patch.setattr(describe, "_save_problem", lambda status: None)


@mutation
def a_message_that_was_cut_is_not_read(patch: Patch) -> None:
    def strict(text: str) -> Any:
        return run.Result.model_validate_json(text)

    patch.setattr(run.Result, "from_termination_message", strict)


@mutation
def a_sidecar_that_outlives_the_trainer_costs_nothing(patch: Patch) -> None:
    patch.setattr(PodStatus, "_started", property(lambda status: [status._trainer]))


@mutation
def workers_that_wait_for_their_peers_hang(patch: Patch) -> None:
    def always(original: Any, policy: Any, world: Any, attempt: Any) -> Any:
        return original(policy, world, attempt.replace(running_time=attempt.start_time))

    _wrap(patch, deadlines, "progress", always)


@mutation
def storage_trouble_is_a_failure(patch: Patch) -> None:
    _wrap(
        patch,
        outcomes,
        "meaning",
        lambda original, code: replace(original(code), waits=False),
    )
    patch.setitem(
        outcomes.ENDINGS,
        outcomes.Cause.STORAGE,
        replace(outcomes.ENDINGS[outcomes.Cause.OTHER_EXIT]),
    )


@mutation
def an_eviction_of_the_prepare_pod_is_its_failure(patch: Patch) -> None:
    patch.setattr(prepare, "_is_interrupted", lambda pod, job, digest: False)


@mutation
def an_evicted_prepare_pod_is_created_again_at_once(patch: Patch) -> None:
    patch.setattr(prepare, "_after", lambda world, backoff, count: world.now)


@mutation
def a_record_replaces_what_a_report_proved(patch: Patch) -> None:
    def replaced(original: Any, attempt: Any, ledger: Any) -> Any:
        if ledger is None:
            return attempt
        forgotten = {"productive_device_seconds": 0, "lost_device_seconds": 0, "last_step": None}
        return original(attempt.replace(**forgotten), ledger)

    _wrap(patch, usage, "split", replaced)


@mutation
def an_exact_end_that_is_seen_late_corrects_nothing(patch: Patch) -> None:
    patch.setattr(corrections, "by_exact_ends", lambda world: world)


@mutation
def an_exact_end_that_is_seen_late_is_forgotten(patch: Patch) -> None:
    patch.setattr(corrections, "awaited", lambda status: set())
