"""The decisions of the planner, one situation at a time."""

from dataclasses import replace

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import StepLedger
from finetune_operator.plan import restart
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


def test_a_new_job_gets_a_prepare_pod_that_requests_no_device():
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


def test_a_name_that_is_taken_stays_in_the_status_while_the_creation_is_repeated():
    """The refusal is known only after the decision; the next decision must not remove it."""
    refused = look(make_job(), refusal=Refusal("NameTaken", "pod a-prepare exists")).status
    again = look(make_job(refused))
    assert again.create
    assert again.status == refused


def test_an_old_prepare_pod_that_is_not_deleted_is_named_with_its_node():
    decision, _ = follow(make_job(), prepare_pod(deletion=at(-100), node="gpu-7"), now=100)
    assert not decision.acts
    assert decision.status.message.startswith(
        "waiting for the old pod a-prepare on node gpu-7 to be deleted"
    )


def test_an_old_prepare_pod_whose_deletion_was_interrupted_is_deleted_again():
    pod = ended(prepare_pod(deletion=at(5)), 0, 4, result(prepared=prepared()))
    assert look(make_job(), pod, now=5).delete == []
    assert [d.uid for d in look(make_job(), pod, now=6).delete] == ["prepare-uid"]


def test_edited_inputs_replace_the_prepare_pod():
    pod = prepare_pod()
    edited = make_job(model={"source": "pvc://w/other"})
    decision = look(edited, ended(pod, 0, 5, result(prepared=prepared())))
    assert [d.uid for d in decision.delete] == ["prepare-uid"]
    assert decision.status.attempt is None


def test_a_corrected_template_replaces_a_prepare_pod_that_waits():
    stuck = prepare_pod(unschedulable="0/3 nodes match Pod's node affinity/selector")
    template = {"spec": {"nodeSelector": {"pool": "cpu"}}}
    for edited in (
        make_job(prepare={"template": template}),
        make_job(workers=make_spec()["workers"] | {"template": {"spec": {"tolerations": []}}}),
    ):
        decision = look(edited, stuck)
        assert [delete.uid for delete in decision.delete] == ["prepare-uid"]
        # A pod that runs would lose what it has downloaded and prepared.
        assert look(edited, prepare_pod(running=True)).delete == []
        assert look(edited, replace(stuck, template=None)).delete == []
    assert look(make_job(), stuck).delete == []


def test_a_changed_on_existing_replaces_the_prepare_pod():
    edited = make_job(checkpoints={"storage": "pvc://w/runs/a", "onExisting": "Resume"})
    assert look(edited, prepare_pod(running=True)).delete


def test_the_prepare_result_commits_attempt_1_before_any_pod_is_created():
    decision = look(make_job(), ended(prepare_pod(), 0, 5, result(prepared=prepared())))
    assert decision.commits
    assert not decision.create
    assert decision.status.attempt == 1
    assert decision.status.resolved.image == "trainer:1"
    assert decision.check.pod["metadata"]["name"] == "a-1-0"


def test_a_job_whose_model_is_on_storage_succeeds_without_a_gang():
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


def test_a_prepare_pod_that_was_killed_for_its_memory_names_the_limit():
    pod = ended(prepare_pod(), 137, 5, reason="OOMKilled")
    status = look(make_job(), pod).status
    assert status.reason == "OutOfMemory"
    assert "in prepare.template" in status.message


def test_a_job_does_not_poll_a_retried_prepare_pod():
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
def test_the_status_shows_why_a_pod_waits(changes, reason):
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


def test_planning_the_same_world_again_changes_nothing():
    job = running()
    again = look(job, worker(0), worker(1), now=20)
    assert again.status == job.status
    assert not again.acts


def test_a_job_succeeds_if_all_workers_exit_with_0_and_the_output_is_verified():
    job = running()
    message = result(output=OUTPUT, **progressed(100))
    gang = (ended(worker(0), 0, 70, message), ended(worker(1), 0, 60))
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


def test_a_success_does_not_depend_on_the_pods_after_it_was_written():
    """Sidecars keep the pods running; they are deleted before the job is planned again."""
    message = result(output=OUTPUT, **progressed(100))
    gang = [replace(ended(worker(i), 0, 70, message), phase="Running") for i in (0, 1)]
    decision, job = follow(running(), *gang, now=71)
    assert [delete.name for delete in decision.delete] == ["a-1-0", "a-1-1"]
    done = look(job, now=90).status
    assert (done.phase, done.output) == ("Succeeded", OUTPUT)


def crash(job, now=40.0, **progress):
    """Return a gang whose worker 1 was killed, so that worker 0 lost its peer."""
    lost = result("Failed", reason="PeerLost", **progressed(20, **progress))
    return (
        ended(worker(0, job.status.attempt), ExitCode.PEER_LOST, now - 2, lost),
        ended(worker(1, job.status.attempt), 137, now - 2, ""),
    )


def test_a_crash_closes_the_attempt_before_any_pod_is_deleted():
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


def test_the_next_attempt_waits_for_the_back_off_and_for_every_pod():
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


def test_a_pod_whose_deletion_is_long_overdue_is_lost_and_not_waited_for():
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
def test_the_cause_is_the_first_exit_that_is_not_a_consequence(codes, reason, cause):
    gang = [ended(worker(i), code, 30) for i, code in enumerate(codes)]
    attempt = look(running(), *gang, now=50).status.attempts[-1]
    assert (attempt.reason, attempt.worker) == (reason, cause)


def test_a_lost_peer_closes_the_attempt_only_after_its_cause_could_be_observed():
    job = running()
    early = look(job, worker(0), ended(worker(1), 88, 30), now=31)
    assert not early.commits
    assert early.requeue_after <= 16  # no event may follow
    assert look(job, worker(0), ended(worker(1), 88, 30), now=46).commits


def test_a_preempted_gang_resumes_without_counting_a_restart():
    job = running()
    message = result("Stopped", reason="Stopped", **progressed(20, saved=20))
    gang = (
        ended(worker(0), 75, 40, message),
        ended(replace(worker(1), deletion=at(70), gone=True), 75, 40),
    )
    closed = look(job, *gang, now=41)
    attempt = closed.status.attempts[-1]
    assert (attempt.outcome, attempt.counted) == ("Preempted", False)
    after = look(job.with_status(closed.status), *gang, now=41).status
    assert (after.attempt, after.restarts, after.counted_restarts) == (2, 1, 0)


def test_a_deletion_that_was_not_observed_is_a_preemption():
    """While no operator ran, one pod was deleted and the other one exited with 75."""
    message = result("Stopped", reason="Stopped", **progressed(20, saved=20))
    closed = look(running(), ended(worker(0), 75, 40, message), now=60)
    assert closed.status.attempts[-1].outcome == "Preempted"
    assert closed.status.attempts[-1].estimated


def test_a_preemption_without_progress_counts():
    gang = (ended(worker(0), 75, 40), ended(replace(worker(1), deletion=at(70)), 75, 40))
    closed = look(running(), *gang, now=41).status.attempts[-1]
    assert closed.counted
    assert "(counted, because it finished no new step)" in closed.message


def test_exit_75_without_a_request_to_stop_counts():
    message = result("Stopped", reason="Stopped", **progressed(20, saved=20))
    gang = (ended(worker(0), 75, 40, message), ended(worker(1), 75, 40))
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


def test_a_checkpoint_after_the_failed_step_resets_the_counted_restarts():
    job = running()
    closed = look(job, *crash(job), now=40)
    job = job.with_status(look(job.with_status(closed.status), *crash(job), now=60).status)
    assert job.status.counted_restarts == 1
    job = running(job)
    message = result("Stopped", reason="Stopped", **progressed(30, saved=30))
    later = look(job, ended(worker(0, 2), 75, 70, message), worker(1, 2, deletion=at(99)), now=71)
    assert later.status.counted_restarts == 0


def test_a_gang_that_fails_before_its_first_step_uses_up_its_restarts():
    """Each attempt reports the old checkpoint, but no step."""
    job = running()
    message = result("Failed", reason="Crashed", **progressed(35, saved=30))
    gang = [ended(worker(0), 1, 40, message), ended(worker(1), 88, 40)]
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
        message = result("Failed", reason="Crashed", **found)
        gang = [ended(pods[0], 1, now + 10, message), ended(pods[1], 88, now + 10)]
        for _ in range(3):  # also after the failure was counted
            _, job = follow(job, *gang, now=now + 11)
        counts.append(job.status.counted_restarts)
    assert counts == [1, 2, 3, 3]
    assert "gave up after 3 counted restarts" in job.status.message


def test_out_of_memory_twice_at_the_same_step_is_permanent():
    job = running()
    message = result("Failed", reason="OutOfMemory", **progressed(20))
    for number in (1, 2):
        gang = (ended(worker(0, number), 87, 30, message), ended(worker(1, number), 88, 30))
        closed = look(job, *gang, now=50)
        job = job.with_status(look(job.with_status(closed.status), *gang, now=400).status)
        if number == 1:
            assert job.status.attempt == 2
            job = running(job)
    assert (job.status.phase, job.status.reason) == ("Failed", "OutOfMemory")
    assert "gave up: attempt 1 ended with OutOfMemory at step 20 as well" in job.status.message


@pytest.mark.parametrize(
    ("code", "reason", "steps", "phase"),
    [
        (86, "Diverged", (70, 71), "Failed"),
        (86, "Diverged", (20, 71), "Restarting"),
        (87, "OutOfMemory", (5, 5), "Failed"),
        (87, "OutOfMemory", (5, 6), "Restarting"),
    ],
)
def test_a_preemption_in_between_does_not_hide_that_a_failure_repeats(code, reason, steps, phase):
    job, now = running(), 100
    for number, (end, name, step) in enumerate(
        [(code, reason, steps[0]), (75, "Stopped", 75), (code, reason, steps[1])], start=1
    ):
        message = result("Stopped" if end == 75 else "Failed", reason=name, **progressed(step))
        deletion = {"deletion": at(now + 60)} if end == 75 else {}
        gang = [
            ended(worker(0, number, **deletion), end, now, message),
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
    text = f"gave up: attempt 1 ended with {reason} at step {steps[0]} as well"
    assert (text in job.status.message) == (phase == "Failed")


@pytest.mark.parametrize("tail", ["", "rank 3 ended with signal SIGKILL"])
def test_a_kill_that_no_one_asked_for_names_the_kernel_and_where_to_look(tail):
    message = result("Failed", reason="Crashed", message=tail) if tail else ""
    gang = [ended(worker(0, node="n1"), 137, 30, message), ended(worker(1), 88, 30)]
    text = look(running(), *gang, now=50).status.attempts[-1].message
    for part in (tail, "SIGKILL", "out-of-memory killer", "kernel log of node n1"):
        assert part in text
    asked = [ended(worker(0, disrupted=True), 137, 30), ended(worker(1), 88, 30)]
    assert "kernel" not in look(running(), *asked, now=50).status.attempts[-1].message
    limit = [ended(worker(0), 137, 30, reason="OOMKilled"), ended(worker(1), 88, 30)]
    assert "kernel" not in look(running(), *limit, now=50).status.attempts[-1].message


def test_a_killed_prepare_pod_names_the_kernel_and_where_to_look():
    status = look(make_job(), ended(prepare_pod(node="n1"), 137, 5)).status
    assert "kernel log of node n1" in status.message


def test_a_failure_before_a_suspension_is_not_compared_with_one_after_it():
    failed = {"reason": "OutOfMemory", "outcome": "Failed", "last_step": 5}
    attempt = running().status.attempts[0]
    attempts = [
        attempt.replace(**failed),
        attempt.replace(outcome="Suspended", reason="Suspended"),
        attempt.replace(**failed),
    ]
    assert restart.previous_failure(attempts) is None
    assert restart.previous_failure([attempts[0], attempts[2]]) == attempts[0]


def test_a_pod_that_its_node_refused_fails_the_attempt():
    pod = worker(1, running=False, phase="Failed", failure=("UnexpectedAdmissionError", "no gpu"))
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


def test_a_finished_job_only_deletes_pods_that_still_run():
    job = make_job(running().status.replace(phase="Failed"))
    decision = look(job, worker(0), ended(worker(1), 1, 30))
    assert [d.name for d in decision.delete] == ["a-1-0"]
    assert decision.status == job.status


def test_nothing_is_done_for_a_job_that_is_being_deleted():
    decision = look(replace(running(), deleting=True))
    assert not decision.acts


def test_an_unreachable_report_is_shown_and_leads_to_no_action():
    decision = look(running(), worker(0), worker(1), silent=True)
    assert not decision.acts
    found = condition(decision.status, "Progressing")
    assert (found.status, found.reason) == ("Unknown", "ReportUnreachable")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("LoadingModel", "loading the model"),
        ("Evaluating", "measuring the validation loss before the first step"),
        ("Training", "working on the first step"),
    ],
)
def test_the_message_names_the_work_before_the_first_step(stage, message):
    decision = look(running(), worker(0), worker(1), report=report(stage=stage))
    assert decision.status.message == message


def test_a_taken_name_is_shown_until_all_pods_are_created():
    refused = look(committed(), now=9, refusal=Refusal("NameTaken", "Service a exists")).status
    assert condition(refused, "Accepted").reason == "NameTaken"
    again = look(committed().with_status(refused), now=10).status
    assert condition(again, "Accepted").reason == "NameTaken"
    made = look(committed().with_status(refused), worker(0), worker(1), now=11).status
    assert condition(made, "Accepted").status == "True"


def test_old_pods_are_deleted_but_those_of_the_last_attempt_are_kept_for_their_logs():
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


def test_a_pod_that_was_created_late_for_an_older_attempt_is_deleted():
    job = running()
    _, job = follow(job, *crash(job), now=40)
    _, job = follow(job, *crash(job), now=100)
    job = running(job, now=120)
    late = pending(1, uid="late")
    decision = look(job, late, worker(0, 2), worker(1, 2), now=140)
    assert [delete.uid for delete in decision.delete] == ["late"]
    assert decision.status.phase == "Running"
    old = crash(make_job(running().status))
    assert look(job, *old, worker(0, 2), worker(1, 2), now=140).delete == []


def test_a_failed_save_is_shown_in_a_condition_and_stops_nothing():
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
