"""Nodes that failed under a job: recorded with the attempt's end, and no trap for the next one."""

from dataclasses import replace

from finetune_api.names import MAX_AVOIDED_NODES
from finetune_api.status import AvoidedNode
from tests.operator.worlds import (
    at,
    committed,
    ended,
    follow,
    look,
    pending,
    running,
    suspended,
    worker,
)

NO_DEVICE = ("UnexpectedAdmissionError", "Allocate failed")


def refused(index, attempt, node, failure=NO_DEVICE):
    return pending(index, attempt, phase="Failed", failure=failure, scheduled=at(10), node=node)


def refusals(*found, job=None):
    """Return the job after attempts in which worker 1 was refused by these nodes for reasons."""
    job, now = job or committed(), 30.0
    for node, reason in found:
        number = job.status.attempt
        gang = [worker(0, number), refused(1, number, node, (reason, "no"))]
        job = job.with_status(look(job, *gang, now=now).status)
        over = [ended(worker(0, number), 75, now), gang[1]]
        now += 1000
        _, job = follow(job, *over, now=now)
        assert job.status.attempt == number + 1
    return job


def faults(job):
    return {node.name: (node.reason, node.faults) for node in job.status.avoided_nodes}


def affinity(pod):
    return str(pod["spec"].get("affinity", {}))


def test_a_node_that_refused_a_pod_is_avoided_and_after_two_faults_excluded():
    once = refusals(("n1", "UnexpectedAdmissionError"))
    assert faults(once) == {"n1": ("UnexpectedAdmissionError", 1)}
    _, first, _ = look(once, now=2000).create
    assert "preferredDuring" in affinity(first)
    twice = refusals(("n1", "UnexpectedAdmissionError"), ("n2", "OutOfcpu"), ("n1", "OutOfcpu"))
    assert faults(twice) == {"n1": ("OutOfcpu", 2), "n2": ("OutOfcpu", 1)}
    _, first, _ = look(twice, now=4000).create
    assert "requiredDuring" in affinity(first)


def test_a_lost_node_is_avoided():
    gang = [ended(worker(0), 88, 60), worker(1, deletion=at(40), node="n7")]
    _, job = follow(running(), *gang, now=101)
    assert faults(job) == {"n7": ("WorkerLost", 1)}


def test_a_node_whose_silence_is_noticed_after_the_gang_has_ended_is_avoided():
    gang = [ended(worker(0), 88, 60), worker(1, node="n7")]
    _, job = follow(running(), *gang, now=80)
    silent = [gang[0], worker(1, node="n7", silent_since=at(85))]
    for now in (90, 91):
        _, job = follow(job, *silent, now=now)
        assert faults(job) == {"n7": ("WorkerLost", 1)}


def test_a_crash_says_nothing_about_the_node():
    gang = [ended(worker(0, node="n1"), 1, 60), worker(1, node="n2")]
    _, job = follow(running(), *gang, now=101)
    assert faults(job) == {}


def test_the_list_keeps_the_newest_faults():
    names = [f"n{number}" for number in range(MAX_AVOIDED_NODES + 2)]
    job = refusals(*((name, "OutOfcpu") for name in names))
    assert list(faults(job)) == names[2:]


def test_a_gang_that_finds_no_other_node_may_use_the_excluded_ones_again():
    """With all nodes excluded the job would otherwise wait for ever."""
    nodes = [AvoidedNode(name="n1", reason="OutOfcpu", faults=3)]
    job = committed()
    job = job.with_status(job.status.replace(avoided_nodes=nodes))
    stuck = [pending(i, unschedulable="0/1 nodes are available") for i in (0, 1)]
    job = job.with_status(look(job, *stuck, now=20).status)
    assert look(job, *stuck, now=619).requeue_after == 1
    _, job = follow(job, *stuck, now=620)
    gone = [replace(pod, gone=True, end_seen=at(621)) for pod in stuck]
    _, job = follow(job, *gone, now=622)
    attempt = job.status.attempts[-1]
    assert (attempt.outcome, attempt.reason) == ("Released", "GangIncomplete")
    for part in ("status.avoidedNodes", "n1", "0/1 nodes are available"):
        assert part in attempt.message
    assert faults(job) == {"n1": ("OutOfcpu", 1)}


def test_a_gang_that_finds_no_node_and_excludes_none_waits():
    job = committed()
    stuck = [pending(i, unschedulable="0/1 nodes are available") for i in (0, 1)]
    job = job.with_status(look(job, *stuck, now=20).status)
    assert not look(job, *stuck, now=50_000).commits


def test_a_suspension_forgets_the_faults():
    """Nodes may have been repaired or replaced during it."""
    job = refusals(("n1", "OutOfcpu"))
    pods = [worker(0, 2), worker(1, 2)]
    job = running(job, now=2000)
    _, job = follow(suspended(job), *pods, now=2010)
    gang = [ended(worker(i, 2, deletion=at(2300)), 75, 2020) for i in (0, 1)]
    _, job = follow(job, *gang, now=2021)
    job = replace(job, spec=job.spec.replace(suspend=False))
    _, job = follow(job, *[p.vanished(at(2030)) for p in gang], now=2040)
    assert job.status.attempt == 3
    assert faults(job) == {}
