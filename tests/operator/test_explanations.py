"""What events, messages and columns explain: failed saves, memory limits, output of containers."""

import pytest

from finetune_api.progress import Progress
from finetune_operator.plan.events import between
from finetune_operator.plan.observe import Pod
from tests.operator import podstatus
from tests.operator.worlds import (
    at,
    condition,
    ended,
    follow,
    look,
    make_job,
    prepare_pod,
    progressed,
    report,
    result,
    running,
    suspended,
    worker,
)

FULL = "the checkpoint of step 8 could not be saved ([Errno 28] No space left on device)"
GANG = (worker(0), worker(1))


# Saves that fail


def failing(step: int = 9, problem: str | None = FULL):
    facts = progressed(step, saved=4)
    return report(**facts | {"progress": facts["progress"].replace(checkpoint_problem=problem)})


def test_a_failed_save_is_an_event_and_in_message_and_columns_while_it_lasts():
    job = running()
    status = look(job, *GANG, report=failing()).status
    assert status.message == f"step 9 of 100; the newest save failed: {FULL}"
    assert status.display.checkpoint == "step 4, save failed"
    (event,) = [e for e in between(job.status, status) if e.reason == "SaveFailed"]
    assert (event.kind, event.message) == ("Warning", FULL)
    job = job.with_status(status)
    again = look(job, *GANG, report=failing(13, FULL.replace("8", "12"))).status
    assert [e.reason for e in between(status, again)] == []
    saved = look(job, *GANG, report=report(**progressed(13, saved=12))).status
    assert saved.message == "step 13 of 100"
    assert saved.display.checkpoint == "step 12"


def test_kernels_that_are_not_used_are_in_the_message():
    facts = progressed(9, saved=4)
    problem = "slower, without fused attention (worker 1, device 3: it did not finish)"
    slower = facts | {"progress": facts["progress"].replace(kernel_problem=problem)}
    status = look(running(), *GANG, report=report(**slower)).status
    assert status.message == f"step 9 of 100; {problem}"


def test_experts_that_no_token_reaches_are_an_event_once():
    facts = progressed(9, saved=8)
    unused = facts | {"progress": facts["progress"].replace(unused_experts=3)}
    job = running()
    status = look(job, *GANG, report=report(**unused)).status
    (event,) = [e for e in between(job.status, status) if e.reason == "ExpertsUnused"]
    assert (event.kind, event.message) == (
        "Warning",
        "no token reached 3 experts in 100 steps; the log of worker 0 names some of them",
    )
    assert [e.reason for e in between(status, status)] == []


def test_a_failed_save_without_any_checkpoint_is_in_the_columns():
    facts = failing().replace(checkpoints=[])
    status = look(running(), *GANG, report=facts).status
    assert status.display.checkpoint == "save failed"


def suspend(*ends: tuple[int, str]):
    job = suspended(running())
    job = job.with_status(look(job, *GANG, now=40).status)
    gang = [
        ended(worker(i, deletion=at(340), node=f"node{i}"), code, 50 + i, message)
        for i, (code, message) in enumerate(ends)
    ]
    return look(job, *gang, now=60).status


def test_a_suspension_in_which_a_save_failed_keeps_its_reason_and_worker():
    full = result("Failed", reason="StorageNotWritable", message=FULL)
    status = suspend((88, "lost"), (73, full))
    attempt = status.attempts[-1]
    assert (attempt.outcome, attempt.reason) == ("Suspended", "Suspended")
    assert (attempt.worker, attempt.exit_code, attempt.node) == (1, 73, "node1")
    assert attempt.message == (
        f"spec.suspend is true; worker 1 could not save: {FULL} (StorageNotWritable, exit code 73);"
        " steps after the last checkpoint are redone"
    )
    (event,) = [e for e in between(running().status, status) if e.reason == "Suspended"]
    assert "Errno 28" in event.message
    assert event.kind == "Warning"


def test_a_suspension_that_saved_an_earlier_step_only_keeps_why():
    facts = progressed(30, saved=20)
    progress: Progress = facts["progress"].replace(checkpoint_problem=FULL)
    stopped = result("Stopped", reason="Stopped", **facts | {"progress": progress})
    attempt = suspend((75, stopped), (75, "")).attempts[-1]
    assert attempt.message == (
        "spec.suspend is true; it could save up to step 20 only, 10 steps are redone: " + FULL
    )


def test_a_worker_that_was_killed_before_it_saved_is_named():
    attempt = suspend((75, ""), (137, "")).attempts[-1]
    assert (attempt.worker, attempt.exit_code) == (1, 137)
    assert "worker 1 could not save: exit code 137 (Crashed)" in attempt.message


# Memory limits


def killed_for_memory(pod: Pod) -> Pod:
    return ended(pod, 137, 30, "", "OOMKilled")


def test_the_memory_limit_is_read_from_the_trainer_container():
    item = {
        "metadata": {"name": "a-1-0", "uid": "u", "namespace": "default"},
        "spec": {
            "containers": [
                {"name": "side", "resources": {"limits": {"memory": "1Mi"}}},
                {"name": "trainer", "resources": {"limits": {"memory": "380Mi"}}},
            ]
        },
        "status": podstatus.running(),
    }
    assert Pod.of(item).memory_limit == "380Mi"
    del item["spec"]["containers"][1]["resources"]
    assert Pod.of(item).memory_limit is None


def test_a_worker_that_exceeded_its_memory_limit_is_named_with_pod_and_limit():
    killed = killed_for_memory(worker(1, memory_limit="380Mi", node="node1"))
    attempt = look(running(), worker(0), killed, now=60).status.attempts[-1]
    assert (attempt.reason, attempt.worker) == ("OutOfMemory", 1)
    assert attempt.message == (
        "worker 1: the container of pod a-1-1 on node node1 was killed for using more host memory "
        "than its limit of 380Mi; raise resources.limits.memory of the container trainer in "
        "workers.template"
    )


def test_a_worker_that_was_killed_without_a_limit_of_its_own_is_explained():
    attempt = look(running(), worker(0), killed_for_memory(worker(1)), now=60).status.attempts[-1]
    assert "the container of pod a-1-1 was killed because memory was exhausted" in attempt.message
    assert "it has no memory limit of its own" in attempt.message


def test_a_prepare_pod_that_exceeded_its_memory_limit_names_its_own_template():
    pod = killed_for_memory(prepare_pod(memory_limit="700Mi", scheduled=at(1)))
    _, job = follow(make_job(), pod, now=60)
    assert "preparation: the container of pod a-prepare was killed" in job.status.message
    assert "limit of 700Mi" in job.status.message
    assert "in prepare.template" in job.status.message


# The output of containers


TAIL = "Traceback (most recent call last):\r\n  File x.py, line 1\n\nValueError: boom\n"


def test_the_output_of_a_container_is_one_line_in_the_event_and_whole_in_the_status():
    job = running()
    status = look(job, worker(0), ended(worker(1), 1, 50, TAIL), now=60).status
    assert status.attempts[-1].message == f"worker 1: {TAIL.strip()}"
    events = {e.reason: e for e in between(job.status, status)}
    assert events["Crashed"].message == (
        "attempt 1: worker 1: Traceback (most recent call last): … ValueError: boom"
    )


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb\n", "\na\n\n\nc\nb", "a\x0bb", "a\u2028b"])
def test_no_event_has_more_than_one_line(text):
    old = make_job().status.replace(phase="Preparing")
    new = old.replace(prepare_failures=1, message=text)
    (event,) = between(old, new)
    assert event.message == "a … b"


def test_a_save_that_failed_does_not_hide_the_condition():
    status = look(running(), *GANG, report=failing()).status
    assert condition(status, "CheckpointAvailable").reason == "SaveFailed"
