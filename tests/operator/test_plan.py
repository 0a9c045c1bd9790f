"""What the planner decides, one situation at a time."""

from dataclasses import replace

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import StepLedger
from finetune_operator.plan import failure
from finetune_operator.plan.observe import Pod, Refusal
from tests.operator.worlds import (
    OUTPUT,
    at,
    checkpoint,
    committed,
    condition,
    ended,
    follow,
    look,
    make_job,
    make_spec,
    pending,
    prepare_pod,
    prepared,
    progressed,
    report,
    result,
    running,
    worker,
)


def test_a_new_job_gets_a_prepare_pod_that_holds_no_device():
    decision = look(make_job())
    (pod,) = decision.create
    assert pod["metadata"]["name"] == "a-prepare"
    assert decision.check.claims == ("w",)
    container = pod["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in str(container["resources"])
    assert decision.status.phase == "Preparing"


def test_a_refused_prepare_pod_is_not_created_and_the_reason_is_shown():
    decision = look(make_job(), refusal=Refusal("ClaimMissing", "claim w does not exist"))
    assert not decision.create
    assert decision.status.reason == "ClaimMissing"
    assert condition(decision.status, "Accepted").status == "False"
    assert decision.requeue_after


def test_a_name_that_is_taken_is_said_once_and_not_written_again_and_again():
    """A refusal of the creation is known only after the plan: the next plan must not unsay it."""
    refused = look(make_job(), refusal=Refusal("NameTaken", "pod a-prepare exists")).status
    again = look(make_job(refused))
    assert again.create
    assert again.status == refused


def test_an_old_prepare_pod_that_does_not_go_is_named_with_its_node():
    decision = look(make_job(), prepare_pod(deletion=at(-100), node="gpu-7"))
    assert not decision.acts
    assert decision.status.message == "waiting for the old pod a-prepare on node gpu-7 to go"


def test_an_old_prepare_pod_whose_deletion_was_cut_short_is_deleted_again():
    pod = ended(prepare_pod(deletion=at(5)), 0, 4, result(prepared=prepared()))
    assert look(make_job(), pod, now=5).delete == []
    assert [d.uid for d in look(make_job(), pod, now=6).delete] == ["prepare-uid"]


def test_edited_inputs_replace_the_prepare_pod():
    pod = prepare_pod()
    edited = make_job(model={"source": "pvc://w/other"})
    decision = look(edited, ended(pod, 0, 5, result(prepared=prepared())))
    assert [d.uid for d in decision.delete] == ["prepare-uid"]
    assert decision.status.attempt is None


def test_a_template_that_was_mended_replaces_a_prepare_pod_that_waits():
    stuck = prepare_pod(unschedulable="0/3 nodes match Pod's node affinity/selector")
    template = {"spec": {"nodeSelector": {"pool": "cpu"}}}
    for edited in (
        make_job(workers=make_spec()["workers"] | {"template": template}),
        make_job(scheduling={"priorityClassName": "high"}),
    ):
        decision = look(edited, stuck)
        assert [doomed.uid for doomed in decision.delete] == ["prepare-uid"]
        # What it has downloaded and prepared so far is worth more.
        assert look(edited, prepare_pod(running=True)).delete == []
        assert look(edited, replace(stuck, template=None)).delete == []
    assert look(make_job(), stuck).delete == []


def test_an_answer_about_existing_storage_is_valid_for_that_question_only():
    edited = make_job(checkpoints={"storage": "pvc://w/runs/a", "onExisting": "Resume"})
    assert look(edited, prepare_pod(running=True)).delete


def test_the_prepare_result_commits_attempt_1_before_any_pod_is_created():
    decision = look(make_job(), ended(prepare_pod(), 0, 5, result(prepared=prepared())))
    assert decision.commits
    assert not decision.create
    assert decision.status.attempt == 1
    assert decision.status.resolved.image == "trainer:1"
    assert decision.check.pod["metadata"]["name"] == "a-1-0"


def test_storage_that_holds_the_finished_model_needs_no_gang():
    message = result(prepared=prepared(finished=OUTPUT))
    decision = look(make_job(), ended(prepare_pod(), 0, 5, message))
    assert decision.status.phase == "Succeeded"
    assert decision.status.attempt is None


@pytest.mark.parametrize("code", [64, 65, 66, 73, 77])
def test_permanent_failures_of_the_prepare_pod_fail_the_job(code):
    message = result("Failed", reason="BadData", message="train.jsonl line 17: not JSON")
    decision = look(make_job(), ended(prepare_pod(), code, 5, message))
    assert decision.status.phase == "Failed"
    assert decision.status.reason == "BadData"
    assert decision.status.message == "train.jsonl line 17: not JSON"


def test_other_failures_of_the_prepare_pod_are_retried_three_times():
    job, now = make_job(), 0.0
    for retry in range(4):
        pod = prepare_pod(retry=retry, uid=f"p{retry}")
        decision = look(job, ended(pod, 1, now, ""), now=now)
        job = job.with_status(decision.status)
        if retry < 3:
            assert job.status.prepare_failures == retry + 1
            again = look(job, ended(pod, 1, now, ""), now=now)
            assert [d.uid for d in again.delete] == [pod.uid]
            assert look(job, now=now).create == []  # backs off
            now += 10 * 2**retry
            assert look(job, now=now).create
    assert job.status.phase == "Failed"


def test_a_prepare_pod_that_was_killed_for_its_memory_says_so():
    pod = ended(prepare_pod(), 137, 5, reason="OOMKilled")
    status = look(make_job(), pod).status
    assert status.reason == "OutOfMemory"
    assert "memory limit in workers.template" in status.message


def test_waiting_for_a_retried_prepare_pod_does_not_spin():
    job = make_job()
    failed = look(job, ended(prepare_pod(), 1, 0, ""), now=0)
    job = job.with_status(failed.status)
    again = look(job, prepare_pod(retry=1, running=True), now=30)
    assert again.requeue_after is None


def test_a_committed_attempt_gets_its_service_and_pods():
    decision = look(committed(), now=8)
    kinds = [(item["kind"], item["metadata"]["name"]) for item in decision.create]
    assert kinds == [("Service", "a"), ("Pod", "a-1-0"), ("Pod", "a-1-1")]
    owner = decision.create[1]["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (
        "job-uid",
        True,
        False,
    )


def test_only_missing_pods_are_created():
    decision = look(committed(), worker(0), now=9)
    assert [i["metadata"]["name"] for i in decision.create] == ["a", "a-1-1"]


def test_running_means_every_container_runs():
    job = committed()
    one = look(job, worker(0), worker(1, running=False, phase="Pending", scheduled=None))
    assert one.status.phase == "Starting"
    both = look(job, worker(0), worker(1))
    assert both.status.phase == "Running"
    assert both.status.start_time == at(100)
    assert condition(both.status, "WorkersReady").status == "True"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unschedulable": "0/1 nodes are available: Insufficient gpu"}, "Unschedulable"),
        ({"waiting": ("ImagePullBackOff", "no such image x")}, "ImagePullBackOff"),
        ({"waiting": ("CreateContainerConfigError", 'secret "s" not found')}, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_pod_that_waits_says_why(changes, reason):
    pod = worker(1, running=False, phase="Pending", scheduled=None, **changes)
    status = look(committed(), worker(0), pod).status
    assert status.phase == "Starting"
    assert status.reason == reason or reason is None
    assert "a-1-1" in status.message


@pytest.mark.parametrize("kind", ["initContainerStatuses", "containerStatuses"])
def test_a_container_of_the_template_that_waits_is_named(kind):
    waits = {"reason": "ImagePullBackOff", "message": "no such image x"}
    trainer = {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}
    status = {"phase": "Pending", "containerStatuses": [trainer]}
    status[kind] = [*status.get(kind, []), {"name": "proxy", "state": {"waiting": waits}}]
    first = look(committed(), now=8).create[1]
    pod = Pod.of(first | {"status": status, "metadata": first["metadata"] | {"uid": "u"}})
    found = look(committed(), pod, worker(1)).status
    assert found.reason == "ImagePullBackOff"
    assert "a-1-0: container proxy: no such image x" in found.message


def test_a_second_look_at_the_same_world_changes_nothing():
    job = running()
    again = look(job, worker(0), worker(1), now=20)
    assert again.status == job.status
    assert not again.acts


def test_success_needs_exit_0_of_all_and_a_verified_output():
    job = running()
    said = result(output=OUTPUT, **progressed(100))
    gang = (ended(worker(0), 0, 70, said), ended(worker(1), 0, 60))
    closed = look(job, *gang, now=71)
    assert closed.status.attempts[-1].outcome == "Succeeded"
    done = look(job.with_status(closed.status), *gang, now=72).status
    assert done.phase == "Succeeded"
    assert done.output == OUTPUT
    assert done.usage.device_seconds == 4 * (60 + 50)
    assert done.usage.productive_device_seconds <= done.usage.device_seconds
    assert condition(done, "Succeeded").status == "True"
    assert condition(done, "Failed").status == "False"


def test_success_without_a_result_is_a_failure():
    gang = (ended(worker(0), 0, 70, "hello"), ended(worker(1), 0, 60))
    closed = look(running(), *gang, now=71)
    done = look(make_job(closed.status), *gang, now=72).status
    assert (done.phase, done.reason) == ("Failed", "NoResult")


def test_success_outlives_the_pods_that_prove_it():
    """Sidecars keep the pods up, and another operator looks when they have been deleted."""
    said = result(output=OUTPUT, **progressed(100))
    gang = [replace(ended(worker(i), 0, 70, said), phase="Running") for i in (0, 1)]
    decision, job = follow(running(), *gang, now=71)
    assert [doomed.name for doomed in decision.delete] == ["a-1-0", "a-1-1"]
    done = look(job, now=90).status
    assert (done.phase, done.output) == ("Succeeded", OUTPUT)


def crash(job, now=40.0, **said):
    """Rank 1 was killed: its pod ends with 137, the other loses its peer."""
    lost = result("Failed", reason="PeerLost", **progressed(20, **said))
    return (
        ended(worker(0, job.status.attempt), ExitCode.PEER_LOST, now - 2, lost),
        ended(worker(1, job.status.attempt), 137, now - 2, ""),
    )


def test_a_crash_closes_the_attempt_before_anything_is_deleted():
    job = running()
    gang = (worker(0), ended(worker(1), 137, 30, ""))
    closed = look(job, *gang, now=31)
    assert closed.commits
    assert not closed.delete
    attempt = closed.status.attempts[-1]
    assert (attempt.outcome, attempt.reason, attempt.worker) == ("Failed", "Crashed", 1)
    assert closed.status.phase == "Restarting"
    then = look(job.with_status(closed.status), *gang, now=31)
    assert [(d.name, d.grace) for d in then.delete] == [("a-1-0", 10)]


def test_the_next_attempt_waits_for_backoff_and_for_every_pod():
    job = running()
    job = job.with_status(look(job, *crash(job), now=40).status)
    assert job.status.next_attempt_time == at(50)
    assert not look(job, *crash(job), now=45).commits
    terminating = replace(worker(0), deletion=at(80))
    assert not look(job, terminating, crash(job)[1], now=51).commits
    decision = look(job, *crash(job), now=51)
    assert decision.commits
    assert decision.status.attempt == 2
    assert decision.status.restarts == 1
    assert decision.status.counted_restarts == 1


def test_a_pod_long_past_its_deletion_is_lost_and_waited_for_no_more():
    job = running()
    lost = replace(worker(0), deletion=at(40))
    closed = look(job, lost, ended(worker(1), 88, 100), now=101)
    assert closed.status.attempts[-1].reason == "WorkerLost"
    later = look(job.with_status(closed.status), lost, ended(worker(1), 88, 100), now=120)
    assert later.status.attempt == 2


@pytest.mark.parametrize(
    ("codes", "reason", "cause"),
    [
        ((88, 137), "Crashed", 1),
        ((79, 89), "Hang", 1),
        ((1, 88), "Crashed", 0),
        ((88, 88), "PeerLost", 0),
        ((87, 88), "OutOfMemory", 0),
    ],
)
def test_the_cause_is_the_first_exit_that_is_no_consequence(codes, reason, cause):
    gang = [ended(worker(i), code, 30) for i, code in enumerate(codes)]
    attempt = look(running(), *gang, now=50).status.attempts[-1]
    assert (attempt.reason, attempt.worker) == (reason, cause)


def test_a_lost_peer_waits_for_its_cause():
    job = running()
    early = look(job, worker(0), ended(worker(1), 88, 30), now=31)
    assert not early.commits
    assert early.requeue_after <= 16  # the cause may stay silent: the clock must tell
    assert look(job, worker(0), ended(worker(1), 88, 30), now=46).commits


def test_a_preempted_gang_resumes_without_counting_a_restart():
    job = running()
    said = result("Stopped", reason="Stopped", **progressed(20, saved=20))
    gang = (
        ended(worker(0), 75, 40, said),
        ended(replace(worker(1), deletion=at(70), gone=True), 75, 40),
    )
    closed = look(job, *gang, now=41)
    attempt = closed.status.attempts[-1]
    assert (attempt.outcome, attempt.counted) == ("Preempted", False)
    after = look(job.with_status(closed.status), *gang, now=41).status
    assert (after.attempt, after.restarts, after.counted_restarts) == (2, 1, 0)


def test_a_deletion_nobody_saw_is_still_a_preemption():
    """The operator was away: one pod is gone, the other ended with 75."""
    said = result("Stopped", reason="Stopped", **progressed(20, saved=20))
    closed = look(running(), ended(worker(0), 75, 40, said), now=60)
    assert closed.status.attempts[-1].outcome == "Preempted"
    assert closed.status.attempts[-1].estimated


def test_a_preemption_without_progress_counts():
    gang = (ended(worker(0), 75, 40), ended(replace(worker(1), deletion=at(70)), 75, 40))
    closed = look(running(), *gang, now=41).status.attempts[-1]
    assert closed.counted
    assert "(it counts: it made no new step)" in closed.message


def test_exit_75_that_nobody_asked_for_counts():
    said = result("Stopped", reason="Stopped", **progressed(20, saved=20))
    gang = (ended(worker(0), 75, 40, said), ended(worker(1), 75, 40))
    assert look(running(), *gang, now=41).status.attempts[-1].counted


@pytest.mark.parametrize("code", [64, 65, 66, 77])
def test_permanent_exit_codes_end_the_job(code):
    gang = (ended(worker(0), code, 40), ended(worker(1), 88, 40))
    job = running()
    closed = look(job, *gang, now=41)
    done = look(job.with_status(closed.status), *gang, now=41).status
    assert done.phase == "Failed"
    assert done.restarts == 0


def test_the_job_fails_after_its_restarts_are_used_up():
    job = running(committed(runPolicy={"maxRestarts": 1}))
    for number in (1, 2):
        assert job.status.attempt == number
        closed = look(job, *crash(job), now=40)
        job = job.with_status(look(job.with_status(closed.status), *crash(job), now=400).status)
        if number == 1:
            job = running(job)
    assert job.status.phase == "Failed"
    assert "gave up after 1 counted restarts" in job.status.message


def test_a_checkpoint_beyond_the_failure_forgives_it():
    job = running()
    closed = look(job, *crash(job), now=40)
    job = job.with_status(look(job.with_status(closed.status), *crash(job), now=60).status)
    assert job.status.counted_restarts == 1
    job = running(job)
    said = result("Stopped", reason="Stopped", **progressed(30, saved=30))
    later = look(job, ended(worker(0, 2), 75, 70, said), worker(1, 2, deletion=at(99)), now=71)
    assert later.status.counted_restarts == 0


def test_a_gang_that_never_gets_to_its_first_step_uses_up_its_restarts():
    """It finds the checkpoint each time, and has no steps of its own."""
    job = running()
    said = result("Failed", reason="Crashed", **progressed(35, saved=30))
    gang = [ended(worker(0), 1, 40, said), ended(worker(1), 88, 40)]
    now = 41
    _, job = follow(job, *gang, now=now)
    counts = [job.status.counted_restarts]
    while not job.status.finished:
        now += 400
        _, job = follow(job, *gang, now=now)
        number = job.status.attempt
        found = {"ledger": StepLedger(), "checkpoints": [checkpoint(30)]}
        loads = report(attempt=number, stage="LoadingModel", **found)
        pods = [worker(0, number), worker(1, number)]
        job = job.with_status(look(job, *pods, now=now + 5, report=loads).status)
        said = result("Failed", reason="Crashed", **found)
        gang = [ended(pods[0], 1, now + 10, said), ended(pods[1], 88, now + 10)]
        for _ in range(3):  # looks, also after the failure was counted
            _, job = follow(job, *gang, now=now + 11)
        counts.append(job.status.counted_restarts)
    assert counts == [1, 2, 3, 3]
    assert "gave up after 3 counted restarts" in job.status.message


def test_out_of_memory_twice_at_the_same_step_is_permanent():
    job = running()
    said = result("Failed", reason="OutOfMemory", **progressed(20))
    for number in (1, 2):
        gang = (ended(worker(0, number), 87, 30, said), ended(worker(1, number), 88, 30))
        closed = look(job, *gang, now=50)
        job = job.with_status(look(job.with_status(closed.status), *gang, now=400).status)
        if number == 1:
            assert job.status.attempt == 2
            job = running(job)
    assert (job.status.phase, job.status.reason) == ("Failed", "OutOfMemory")


@pytest.mark.parametrize(
    ("code", "reason", "steps", "phase"),
    [
        (86, "Diverged", (70, 71), "Failed"),
        (86, "Diverged", (20, 71), "Restarting"),
        (87, "OutOfMemory", (5, 5), "Failed"),
        (87, "OutOfMemory", (5, 6), "Restarting"),
    ],
)
def test_a_preemption_in_between_does_not_hide_that_a_failure_came_back(code, reason, steps, phase):
    job, now = running(), 100
    for number, (end, name, step) in enumerate(
        [(code, reason, steps[0]), (75, "Stopped", 75), (code, reason, steps[1])], start=1
    ):
        words = result("Stopped" if end == 75 else "Failed", reason=name, **progressed(step))
        told = {"deletion": at(now + 60)} if end == 75 else {}
        gang = [
            ended(worker(0, number, **told), end, now, words),
            ended(worker(1, number), 75 if end == 75 else 88, now),
        ]
        _, job = follow(job, *gang, now=now + 1)
        if number < 3:
            now += 400
            _, job = follow(job, *gang, now=now)
            job = running(job, now=now + 10)
            now += 100
    assert [a.outcome for a in job.status.attempts] == ["Failed", "Preempted", "Failed"]
    assert job.status.phase == phase


def test_what_failed_before_a_suspension_is_no_measure_after_it():
    failed = {"reason": "OutOfMemory", "outcome": "Failed", "last_step": 5}
    attempt = running().status.attempts[0]
    attempts = [
        attempt.replace(**failed),
        attempt.replace(outcome="Suspended", reason="Suspended"),
        attempt.replace(**failed),
    ]
    assert failure.failed_before(attempts) is None
    assert failure.failed_before([attempts[0], attempts[2]]) == attempts[0]


def test_an_evicted_pod_whose_container_never_ran_fails_the_attempt():
    pod = worker(1, running=False, phase="Failed", trouble=("UnexpectedAdmissionError", "no gpu"))
    closed = look(running(), ended(worker(0), 88, 30), pod, now=60)
    assert closed.status.attempts[-1].reason == "UnexpectedAdmissionError"


def test_the_three_parts_of_usage_add_up():
    job = running()
    closed = look(job, *crash(job, redone=5), now=40).status
    usage = closed.usage
    assert usage.device_seconds == 4 * 2 * 28
    assert usage.lost_device_seconds == 5 * 8
    assert usage.device_seconds == (
        usage.productive_device_seconds + usage.lost_device_seconds + usage.overhead_device_seconds
    )


def test_a_vanished_pod_is_charged_up_to_its_last_proof_of_life():
    job = running(now=30)
    assert job.status.usage.device_seconds == 4 * 2 * 20
    status = look(job, worker(0), replace(worker(1), gone=True, running=False), now=40).status
    attempt = status.attempts[-1]
    assert attempt.device_seconds == 4 * (30 + 20)
    assert attempt.estimated


def test_a_finished_job_only_lets_go_of_what_still_runs():
    job = make_job(running().status.replace(phase="Failed"))
    decision = look(job, worker(0), ended(worker(1), 1, 30))
    assert [d.name for d in decision.delete] == ["a-1-0"]
    assert decision.status == job.status


def test_a_job_that_is_being_deleted_is_left_alone():
    decision = look(replace(running(), deleting=True))
    assert not decision.acts


def test_a_silent_report_is_shown_and_never_acted_on():
    decision = look(running(), worker(0), worker(1), silent=True)
    assert not decision.acts
    found = condition(decision.status, "Progressing")
    assert (found.status, found.reason) == ("Unknown", "ReportUnreachable")


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("LoadingModel", "loading the model"),
        ("Evaluating", "measuring the validation loss before the first step"),
        ("Training", "working on the first step"),
    ],
)
def test_what_takes_minutes_before_the_first_step_is_named(stage, words):
    decision = look(running(), worker(0), worker(1), report=report(stage=stage))
    assert decision.status.message == words


def test_a_taken_name_stays_visible_until_everything_is_created():
    refused = look(committed(), now=9, refusal=Refusal("NameTaken", "Service a exists")).status
    assert condition(refused, "Accepted").reason == "NameTaken"
    again = look(committed().with_status(refused), now=10).status
    assert condition(again, "Accepted").reason == "NameTaken"
    made = look(committed().with_status(refused), worker(0), worker(1), now=11).status
    assert condition(made, "Accepted").status == "True"


def test_old_pods_are_deleted_but_the_last_attempts_logs_stay():
    job = running()
    status = job.status.replace(
        attempt=3,
        attempts=[
            job.status.attempts[0].replace(
                number=n, outcome="Failed" if n < 3 else None, created=n < 3
            )
            for n in (1, 2, 3)
        ],
    )
    old = [ended(worker(0, n), 1, 30) for n in (1, 2)]
    assert [d.name for d in look(job.with_status(status), *old).delete] == ["a-1-0"]


def test_a_pod_of_an_older_attempt_that_comes_late_is_deleted_at_sight():
    job = running()
    _, job = follow(job, *crash(job), now=40)
    _, job = follow(job, *crash(job), now=100)
    job = running(job, now=120)
    late = pending(1, uid="late")
    decision = look(job, late, worker(0, 2), worker(1, 2), now=140)
    assert [doomed.uid for doomed in decision.delete] == ["late"]
    assert decision.status.phase == "Running"
    ended_ones = crash(make_job(running().status))
    assert look(job, *ended_ones, worker(0, 2), worker(1, 2), now=140).delete == []


def test_a_save_that_fails_is_a_condition_and_stops_nothing():
    problem = "the checkpoint of step 8 could not be saved ([Errno 28] No space left on device)"
    facts = progressed(9, saved=4)
    failing = facts | {"progress": facts["progress"].replace(checkpoint_problem=problem)}
    gang = (worker(0), worker(1))
    job = running()

    decision = look(job, *gang, report=report(**failing))
    assert not decision.acts
    assert decision.status.phase == "Running"
    found = condition(decision.status, "CheckpointAvailable")
    assert (found.status, found.reason) == ("True", "SaveFailed")
    assert found.message.endswith(f"step-4; {problem}")

    nothing = look(job, *gang, report=report(**failing | {"checkpoints": []}))
    found = condition(nothing.status, "CheckpointAvailable")
    assert (found.status, found.reason, found.message) == ("False", "SaveFailed", problem)

    job = job.with_status(decision.status)
    saved = look(job, *gang, report=report(**progressed(13, saved=12)))
    found = condition(saved.status, "CheckpointAvailable")
    assert (found.status, found.reason) == ("True", "Verified")
