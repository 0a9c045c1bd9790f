"""A node that does not answer is named, with pods as the kubelet and the controllers leave them."""

import pytest

from finetune_api.base import Object, format_time
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
    policy,
    prepare_pod,
    progressed,
    report,
    running,
    suspended,
    worker,
)

PEER_LOST = "Connection closed by peer [10.98.1.4]:43210 (gloo/transport/tcp/pair.cc:537)"
SILENT = format_time(at(60))


def on_node(index: int, status: Object, **metadata: object) -> Pod:
    """Return a worker of attempt 1 as the API server has it."""
    labels = {
        "finetune.dev/role": "worker",
        "finetune.dev/attempt": "1",
        "finetune.dev/worker-index": str(index),
        "finetune.dev/job-name": "a",
    }
    owner = {"kind": "FineTuneJob", "name": "a", "uid": "job-uid", "controller": True}
    return Pod.of(
        {
            "metadata": {
                "name": f"a-1-{index}",
                "uid": f"uid-1-{index}",
                "namespace": "default",
                "labels": labels,
                "ownerReferences": [owner],
                **metadata,
            },
            "spec": {"nodeName": f"node{index}"},
            "status": status,
        }
    )


def runs() -> Object:
    status = podstatus.running()
    for entry in status["conditions"]:
        entry["lastTransitionTime"] = format_time(at(10))
    return status


def lost(index: int = 1, *, deleted: bool = False) -> Pod:
    """Return a worker whose node does not answer since 60 s."""
    status = podstatus.on_silent_node(runs(), SILENT)
    if not deleted:
        return on_node(index, status)
    status = podstatus.deleted_for_taint(status, format_time(at(80)))
    return on_node(index, status, deletionTimestamp=format_time(at(110)))


def restarted(index: int, code: int, reason: str) -> Pod:
    """Return a worker whose node was restarted: the kubelet does not know how it ended."""
    status = podstatus.ended(code)
    status["containerStatuses"][0]["state"]["terminated"]["reason"] = reason
    return on_node(index, status)


READY = {
    "the kubelet reports that it is ready": ({"status": "True"}, False),
    "its node does not answer": ({"status": "False"}, True),
    "the kubelet reports a container that is not ready": (
        {"status": "False", "reason": "ContainersNotReady"},
        False,
    ),
    "a readiness gate is not ready": (
        {"status": "False", "reason": "ReadinessGatesNotReady"},
        False,
    ),
}


@pytest.mark.parametrize(("ready", "silent"), READY.values(), ids=READY)
def test_a_silent_node_is_recognized_by_the_condition_ready_of_its_pod(ready, silent):
    status = runs()
    status["conditions"][-1] |= ready | {"lastTransitionTime": SILENT}
    assert on_node(0, status).silent_since == (at(60) if silent else None)


def test_a_kubelet_that_gives_no_reason_is_not_silent():
    """Not every kubelet is Kubernetes' own: such a pod has just begun to start."""
    status = runs()
    kept = [c for c in status["conditions"] if c["type"] not in ("Ready", "ContainersReady")]
    unready = [podstatus.condition(kind, "False", SILENT) for kind in ("ContainersReady", "Ready")]
    assert on_node(0, status | {"conditions": kept + unready}).silent_since is None


def test_the_end_of_a_pod_is_no_silence_of_its_node():
    status = podstatus.ended(1) | {
        "conditions": [podstatus.condition("Ready", "False", SILENT)],
    }
    assert on_node(0, status).silent_since is None


# The verdict


def close(*gang: Pod, now: float = 100):
    return look(running(), *gang, now=now).status


def test_peers_that_lost_a_worker_on_a_silent_node_name_the_node():
    """Power cut: the survivor ends with 88, and its message knows an address only."""
    status = close(ended(worker(0, node="node0"), 88, 65, PEER_LOST), lost())
    attempt = status.attempts[-1]
    assert (attempt.reason, attempt.worker, attempt.node) == ("WorkerLost", 1, "node1")
    assert attempt.message.startswith(
        "worker 1 was lost: its pod a-1-1 is on node node1, which does not answer since 00:01:00"
    )
    assert "pair.cc:537" in attempt.message


def test_a_worker_whose_deletion_is_overdue_is_named_with_its_node():
    status = close(ended(worker(0), 88, 65, PEER_LOST), lost(deleted=True), now=180)
    attempt = status.attempts[-1]
    assert (attempt.reason, attempt.worker, attempt.node) == ("WorkerLost", 1, "node1")
    assert "node node1, which does not answer since 00:01:00 UTC" in attempt.message


def test_peers_that_end_before_the_silence_of_the_node_is_known_name_the_worker_that_did_not_end():
    """The node lifecycle controller waits longer than the gang; the node is named afterwards."""
    gang = (ended(worker(0), 88, 65, PEER_LOST), on_node(1, runs()))
    decision, job = follow(running(), *gang, now=85)
    attempt = decision.status.attempts[-1]
    assert (attempt.reason, attempt.node) == ("PeerLost", "node1")
    assert attempt.message.startswith("worker 1 (pod a-1-1 on node node1) has not ended; worker 0:")
    status = podstatus.on_silent_node(runs(), format_time(at(95)))
    silent = on_node(1, status, deletionTimestamp=format_time(at(95)))
    decision, job = follow(job, gang[0], silent, now=100)
    attempt = decision.status.attempts[-1]
    assert (attempt.reason, attempt.node) == ("PeerLost", "node1")
    assert attempt.message == (
        "worker 1 was lost: its pod a-1-1 is on node node1, which does not answer since 00:01:35 "
        f"UTC; worker 0: {PEER_LOST}"
    )
    again = look(job, gang[0], silent, now=105).status.attempts[-1]
    assert again.message == attempt.message


def test_gangs_whose_workers_have_all_ended_name_no_other_worker():
    status = close(ended(worker(0), 88, 65, PEER_LOST), ended(worker(1), 88, 66, PEER_LOST))
    assert status.attempts[-1].message == f"worker 0: {PEER_LOST}"


@pytest.mark.parametrize(("code", "reason"), [(255, "Unknown"), (137, "ContainerStatusUnknown")])
def test_a_restarted_node_is_no_crash(code, reason):
    status = close(ended(worker(0), 88, 65, PEER_LOST), restarted(1, code, reason))
    attempt = status.attempts[-1]
    assert (attempt.reason, attempt.worker, attempt.node) == ("WorkerLost", 1, "node1")
    assert attempt.exit_code == code
    assert "node node1 or its container runtime was restarted" in attempt.message
    ready = condition(status, "WorkersReady")
    assert "worker 1 ended when the node or its container runtime was restarted" in ready.message


def test_a_crash_elsewhere_is_the_cause_even_if_a_node_was_restarted():
    crash = ended(worker(0, node="node0"), 1, 3_000_000_000, "boom")
    status = close(crash, restarted(1, 255, "Unknown"), now=3_000_000_100)
    attempt = status.attempts[-1]
    assert (attempt.reason, attempt.worker, attempt.node) == ("Crashed", 0, "node0")


def test_a_vanished_pod_is_named_with_its_node():
    gone = on_node(1, runs()).vanished(at(70))
    attempt = close(ended(worker(0), 88, 65), gone).attempts[-1]
    assert (attempt.reason, attempt.node) == ("WorkerLost", "node1")
    assert attempt.message == "worker 1 was lost: its pod a-1-1 on node node1 vanished"


def test_every_failure_has_the_node_of_its_worker():
    attempt = close(ended(worker(0), 88, 65), ended(worker(1, node="n7"), 1, 64, "boom")).attempts[
        -1
    ]
    assert (attempt.worker, attempt.node) == (1, "n7")


# While the gang waits


PROGRESS = progressed(62)
PROGRESS["progress"] = PROGRESS["progress"].replace(eta_seconds=240, train_loss=2.5)


def trained():
    """Return a running job that has reported 62 steps."""
    job = running()
    return job.with_status(look(job, worker(0), worker(1), report=report(**PROGRESS)).status)


def shown(*gang: Pod, now: float = 100, **changes: object):
    """Return the status of a gang of which worker 0 reported 62 steps before."""
    return look(trained(), *gang, now=now, report=report(**PROGRESS), **changes).status


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_a_running_gang_names_the_node_that_does_not_answer_and_claims_no_end(index, silent):
    gang = [on_node(0, runs()), on_node(1, runs())]
    gang[index] = lost(index)
    status = shown(*gang, silent=silent)
    assert (status.phase, status.reason) == ("Running", "NodeNotReady")
    where = f"node{index}, which does not answer since 00:01:00 UTC"
    assert where in status.message
    assert "left" not in status.message
    assert "network" not in status.message
    assert status.display.eta is None
    ready = condition(status, "WorkersReady")
    assert (ready.status, ready.reason) == ("False", "NodeNotReady")
    assert ready.message.startswith("1 of 2 workers run; ")
    assert where in ready.message


def test_a_gang_of_which_a_lost_pod_is_waited_for_shows_how_the_others_ended():
    gang = (ended(worker(0), 88, 65, PEER_LOST), lost(deleted=True))
    status = shown(*gang)
    assert (status.phase, status.reason) == ("Restarting", "NodeNotReady")
    assert status.message == (
        "worker 0 ended with exit code 88 (PeerLost); waiting for the end of a-1-1 on node node1, "
        "which does not answer since 00:01:00 UTC; attempt 1 ends at 00:02:50 UTC at the latest, "
        "and the next one may start then"
    )
    assert (status.stage, status.display.eta) == (None, None)
    ready = condition(status, "WorkersReady")
    assert (ready.status, ready.reason) == ("False", "NodeNotReady")
    assert ready.message == (
        "0 of 2 workers run; worker 0 ended with exit code 88 (PeerLost); worker 1 is on node "
        "node1, which does not answer since 00:01:00 UTC"
    )


def test_a_gang_of_which_the_cause_is_waited_for_does_not_claim_to_train():
    gang = (ended(worker(0), 88, 95, PEER_LOST), on_node(1, runs()))
    status = shown(*gang)
    assert (status.phase, status.reason) == ("Restarting", "PeerLost")
    assert status.message == (
        "worker 0 ended with exit code 88 (PeerLost); waiting for the end of a-1-1 on node node1; "
        "attempt 1 ends at 00:01:50 UTC at the latest, and the next one may start then"
    )


def test_a_gang_that_is_asked_to_stop_does_not_claim_to_train_on():
    asked = worker(1, deletion=at(400), disrupted=True, node="node1")
    status = shown(worker(0), asked)
    assert (status.phase, status.reason) == ("Restarting", "Preempted")
    assert status.message == (
        "a-1-1 on node node1 was asked to stop; waiting for the gang to save and end"
    )
    assert status.display.eta is None


def test_workers_that_are_done_leave_the_message_to_the_one_that_exports():
    facts = report(**PROGRESS | {"stage": "Exporting"})
    gang = (worker(0), ended(worker(1), 0, 95))
    status = look(trained(), *gang, report=facts).status
    assert (status.phase, status.message) == ("Running", "exporting the model of step 62")


def test_between_two_attempts_the_message_says_what_is_waited_for_and_until_when():
    gang = (ended(worker(0), 1, 65, "boom"), lost(deleted=True))
    _, job = follow(running(), *gang, now=100)
    status = job.status
    assert status.phase == "Restarting"
    assert status.message == (
        "attempt 1: worker 0: boom; waiting for the end of a-1-1 on node node1, which does not "
        "answer since 00:01:00 UTC; attempt 2 starts at 00:02:50 UTC at the latest"
    )
    ready = condition(status, "WorkersReady")
    assert "worker 0 ended with exit code 1 (Crashed)" in ready.message


def test_many_workers_that_ended_alike_are_counted():
    job = running()
    attempt = job.status.attempts[0].replace(workers=12)
    job = policy(job.with_status(job.status.replace(attempts=[attempt])))
    gang = [ended(worker(i), 88, 95) for i in range(11)] + [worker(11)]
    status = look(job, *gang).status
    assert status.message.startswith("11 workers, the first of them 0, ended with exit code 88")
    status = look(job, *gang[:3], *[worker(i) for i in range(3, 12)]).status
    assert status.message.startswith("workers 0, 1 and 2 ended with exit code 88 (PeerLost)")


def test_a_suspension_that_waits_for_a_pod_on_a_silent_node_names_it():
    job = suspended(running())
    job = job.with_status(look(job, worker(0), lost(), now=90).status)
    status = look(job, worker(0, deletion=at(400)), lost(), now=100).status
    assert status.message == (
        "spec.suspend is true; waiting for 2 workers to save and end; worker 1 is on node node1, "
        "which does not answer since 00:01:00 UTC"
    )
    gone = worker(0).vanished(at(110))
    _, job = follow(job, ended(gone, 75, 105), lost(deleted=True), now=175)
    assert job.status.phase == "Suspending"
    assert job.status.message == (
        "waiting for 1 pod to be deleted: "
        "a-1-1 on node node1, which does not answer since 00:01:00 UTC"
    )


@pytest.mark.parametrize("deletion", [None, at(110)])
def test_a_prepare_pod_on_a_silent_node_is_named_with_the_node(deletion):
    pod = prepare_pod(
        running=True, scheduled=at(10), node="n3", silent_since=at(60), deletion=deletion
    )
    decision, _ = follow(make_job(), pod, now=100)
    status = decision.status
    assert (status.phase, status.reason) == ("Preparing", "NodeNotReady")
    assert "a-prepare on node n3, which does not answer since 00:01:00 UTC" in status.message


# Reports that do not arrive


def test_a_report_that_never_arrived_is_not_called_loading():
    job = running()
    status = look(job, worker(0), worker(1), silent=True).status
    assert (status.phase, status.stage, status.reason) == ("Running", None, "ReportUnreachable")
    assert status.message == (
        "all workers run; no report of worker 0 arrives: open port 29600 of the pods to the "
        "operator; training, checkpoints, restarts and the export do not need it, but progress is "
        "not shown"
    )


def test_the_last_progress_is_shown_as_such_while_reports_do_not_arrive():
    status = shown(worker(0), worker(1), silent=True)
    assert status.message.startswith("step 62 of 100, loss 2.500 in the last report; no report of")
    assert "left" not in status.message
    assert status.display.eta is None


# Events


def test_a_silent_node_and_a_report_that_does_not_arrive_are_events_once():
    job = trained()
    silent = look(job, worker(0), lost(), now=100).status
    (event,) = between(job.status, silent)
    assert (event.kind, event.reason) == ("Warning", "NodeNotReady")
    assert "node1, which does not answer since 00:01:00 UTC" in event.message
    again = look(job.with_status(silent), worker(0), lost(), now=110).status
    assert between(silent, again) == []
    unreachable = look(job, worker(0), worker(1), silent=True).status
    (event,) = between(job.status, unreachable)
    assert (event.kind, event.reason) == ("Warning", "ReportUnreachable")
    assert "port 29600" in event.message
