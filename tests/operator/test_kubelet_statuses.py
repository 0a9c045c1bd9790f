"""What the operator concludes from the statuses that kubelets write, on its way from pod to job."""

from dataclasses import replace

import pytest

from finetune_api import names
from finetune_api.base import Object, format_time
from finetune_operator.plan.observe import Pod
from tests.operator import podstatus
from tests.operator.worlds import at, committed, look, result, running, worker


def stamp(seconds: float) -> str:
    return format_time(at(seconds))


def item(
    status: Object, *, index: int = 0, spec: Object | None = None, **metadata: object
) -> Object:
    """Return a worker of attempt 1 as the API server has it, bound to a node since 10 s."""
    labels = {
        names.LABEL_ROLE: "worker",
        names.LABEL_ATTEMPT: "1",
        names.LABEL_WORKER_INDEX: str(index),
    }
    owner = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "name": "a",
        "uid": "job-uid",
        "controller": True,
    }
    conditions = [
        c | {"lastTransitionTime": stamp(10)} if c["type"] == "PodScheduled" else c
        for c in status.get("conditions", [podstatus.scheduled()])
    ]
    return {
        "metadata": {
            "name": f"a-1-{index}",
            "namespace": "default",
            "uid": f"uid-1-{index}",
            "labels": labels,
            "ownerReferences": [owner],
            "creationTimestamp": stamp(5),
            **metadata,
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "trainer"}]} | (spec or {}),
        # A merge patch removes what is None.
        "status": {k: v for k, v in status.items() if v is not None} | {"conditions": conditions},
    }


def finished_at(status: Object, seconds: float) -> Object:
    """Return the status with this time of the trainer container's end."""
    first, *others = status["containerStatuses"]
    end = first["state"]["terminated"] | {"finishedAt": stamp(seconds)}
    return status | {"containerStatuses": [first | {"state": {"terminated": end}}, *others]}


SIDE = {"containers": [{"name": "trainer"}, {"name": "side"}]}
NATIVE = {"initContainers": [{"name": "side", "restartPolicy": "Always"}]}
RUNS = {"running": {"startedAt": stamp(12)}}
DRAINED = podstatus.disrupted("EvictionByEvictionAPI", "Eviction API: evicting", stamp(81))
FAILED_INIT = {
    "phase": "Pending",
    "initContainerStatuses": [
        podstatus.container({"terminated": {"exitCode": 3, "finishedAt": stamp(40)}}, name="init")
    ],
    "containerStatuses": [podstatus.container({"waiting": {"reason": "PodInitializing"}})],
}
OVER = {
    "its container has ended, its phase is still Running": item(podstatus.terminated(1)),
    "its phase is final too": item(podstatus.ended(1)),
    "a restartable init container still runs": item(
        podstatus.terminated(0)
        | {"initContainerStatuses": [podstatus.container(RUNS, name="side")]},
        spec=NATIVE,
    ),
    "evicted while its containers wait": item(podstatus.refused("Evicted", "disk", waits=True)),
    "evicted without any container status": item(podstatus.refused("Evicted", "disk")),
    "refused by its node": item(podstatus.refused("UnexpectedAdmissionError", "no device")),
    "refused after a restart of its kubelet": item(
        podstatus.refused("OutOfcpu", "no cpu", ran=stamp(10))
    ),
    "its kubelet lost its container": item(podstatus.unknown()),
    "drained while its image was pulled": item(podstatus.unknown(ran=False, condition=DRAINED)),
    "collected although its containers seem to run": item(
        podstatus.running() | {"phase": "Failed"}
    ),
    "succeeded without any container status": item({"phase": "Succeeded"}),
    "its init container failed, its phase is still Pending": item(
        FAILED_INIT, spec={"initContainers": [{"name": "init"}]}
    ),
}
ALIVE = {
    "it runs": item(podstatus.running()),
    "its image cannot be pulled": item(podstatus.pulling()),
    "a sidecar outlives its trainer": item(
        podstatus.terminated(1, others=[podstatus.container(RUNS, name="side")]), spec=SIDE
    ),
    "its sidecar never started": item(
        podstatus.terminated(
            1, others=[podstatus.container({"waiting": {"reason": "ErrImagePull"}}, name="side")]
        ),
        spec=SIDE,
    ),
    "its sidecar has no status yet": item(podstatus.terminated(1), spec=SIDE),
}


@pytest.mark.parametrize("name", [*OVER, *ALIVE])
def test_a_pod_is_over_when_its_containers_are_or_its_phase_is_final(name):
    pod = Pod.of((OVER | ALIVE)[name])
    assert pod.over(at(100)) == (name in OVER)
    assert not (pod.over(at(100)) and pod.running)


@pytest.mark.parametrize("name", OVER)
def test_the_attempt_of_a_pod_that_is_over_ends(name):
    """Whatever the status of the pod says, its job does not wait for it for ever."""
    job = running()
    pods = [Pod.of(OVER[name]), worker(1)]
    if pods[0].ended and pods[0].ended.exit_code == 0:
        pods[1] = Pod.of(item(podstatus.ended(1), index=1))
    for now in (100, 200):
        decision = look(job, *pods, now=now)
        job = job.with_status(decision.status)
        assert "a-1-0" not in [delete.name for delete in decision.delete], "its log is deleted"
    assert job.status.attempts[0].outcome == "Failed"


@pytest.mark.parametrize("name", [n for n in OVER if "evicted" in n or "refused" in n])
def test_a_pod_that_ended_before_its_containers_started_is_named_with_its_reason(name):
    """It has the condition DisruptionTarget, as after an eviction, and nothing more will come."""
    job = committed()
    pod = OVER[name]
    pod["status"]["conditions"].append(DRAINED)
    status = look(job, Pod.of(pod), worker(1, running=False, phase="Pending"), now=100).status
    attempt = status.attempts[-1]
    assert attempt.outcome == "Released"
    assert attempt.reason == pod["status"]["reason"]
    assert pod["status"]["message"] in attempt.message


def test_the_log_of_a_worker_that_just_crashed_is_kept():
    """The kubelet writes the end of the container up to a second before the final phase."""
    job = running()
    crashed = Pod.of(item(finished_at(podstatus.terminated(1), 50), index=0))
    names_deleted = []
    for now in (51, 51, 52):
        decision = look(job, crashed, worker(1), now=now)
        names_deleted += [delete.name for delete in decision.delete]
        job = job.with_status(decision.status)
    assert set(names_deleted) == {"a-1-1"}


@pytest.mark.parametrize("policy", ["None", "Running"])
def test_the_pods_of_a_job_that_just_succeeded_are_kept(policy):
    job = running(committed(runPolicy={"cleanPodPolicy": policy}))
    done = [
        Pod.of(item(finished_at(podstatus.terminated(0, result(output=OUTPUT_OF)), 90), index=0)),
        Pod.of(item(finished_at(podstatus.terminated(0), 90), index=1)),
    ]
    for now in (91, 91, 92, 93):
        decision = look(job, *done, now=now)
        assert not decision.delete
        job = job.with_status(decision.status)
    assert job.status.phase == "Succeeded"


OUTPUT_OF = {"location": "pvc://w/runs/a/final", "sizeBytes": 10, "verified": True}


def test_a_container_without_a_time_of_its_end_is_never_first_among_causes():
    job = running()
    lost = Pod.of(item(podstatus.unknown(), index=0))
    crashed = Pod.of(item(finished_at(podstatus.ended(1), 90), index=1))
    decision = look(job, lost, crashed, now=95)
    assert (decision.status.attempts[-1].worker, decision.status.attempts[-1].exit_code) == (1, 1)


def test_a_container_without_a_time_of_its_end_waits_for_another_cause():
    job = running()
    lost = Pod.of(item(podstatus.unknown(condition=DRAINED | {"type": "Ready"}), index=0))
    assert look(job, lost, worker(1), now=85).status.attempts[-1].outcome is None
    attempt = look(job, lost, worker(1), now=99).status.attempts[-1]
    assert (attempt.worker, attempt.exit_code) == (0, 137)


def test_a_pod_that_never_ran_had_nothing_to_save():
    job = committed()
    drained = Pod.of(item(podstatus.unknown(ran=False, condition=DRAINED), index=0))
    attempt = look(job, drained, worker(1), now=85).status.attempts[-1]
    assert attempt.outcome == "Released"
    assert "checkpoint" not in attempt.message
    assert "Eviction API: evicting" in attempt.message
    assert "never ran" in attempt.message
    assert attempt.exit_code is None


def test_a_container_that_ran_when_its_node_was_removed_does_not_count_as_never_run():
    """PodGC writes the phase, and a finalizer keeps the pod as its kubelet last described it."""
    collected = podstatus.running() | {"phase": "Failed"}
    gone = podstatus.disrupted("DeletionByPodGC", "PodGC: node no longer exists", stamp(90))
    collected["conditions"] = [podstatus.scheduled(), gone]
    pod = Pod.of(item(collected, deletionTimestamp=stamp(90), deletionGracePeriodSeconds=0))
    attempt = look(running(), pod, worker(1), now=95).status.attempts[-1]
    assert attempt.outcome == "Failed"
    assert "never ran" not in attempt.message
    assert "node no longer exists" in attempt.message


def test_the_usage_does_not_fall_when_a_kubelet_loses_its_containers():
    job, ran = running(), item(podstatus.running())
    ran["status"]["startTime"] = stamp(11)
    job = job.with_status(look(job, worker(0), worker(1), now=36_010).status)
    assert job.status.usage.gpu_hours == "80.00"
    gang = []
    for index in (0, 1):
        lost = item(podstatus.unknown(condition=DRAINED), index=index)
        lost["status"]["startTime"] = stamp(11)
        gang.append(Pod.of(lost))
    for now in (36_020, 36_060, 36_090):
        job = job.with_status(look(job, *gang, now=now).status)
        assert (job.status.usage.gpu_hours, job.status.usage.estimated) == ("80.00", True)


def test_a_pod_that_held_devices_and_never_ran_is_charged():
    """Seen on a real node: bound for 71 s in ErrImagePull, then drained."""
    job = committed()
    pulling = item(podstatus.pulling())
    pulling["status"]["startTime"] = stamp(10)
    job = job.with_status(look(job, Pod.of(pulling), now=70).status)
    charged = job.status.usage.device_seconds
    drained = item(podstatus.unknown(ran=False, condition=DRAINED))
    drained["status"]["startTime"] = stamp(10)
    for now in (82, 83, 84):
        job = job.with_status(look(job, Pod.of(drained), now=now).status)
        assert job.status.usage.device_seconds >= charged
    assert (job.status.usage.device_seconds, job.status.usage.estimated) == (4 * 71, True)


def test_an_end_is_exact_only_with_its_time():
    exact = Pod.of(item(finished_at(podstatus.ended(1), 60)))
    assert (exact.released, exact.ended.exact) == (at(60), True)
    assert Pod.of(item(podstatus.unknown())).released is None
    both = [podstatus.container(RUNS, name="side")]
    assert Pod.of(item(podstatus.terminated(1, others=both), spec=SIDE)).released is None


def test_a_deleted_pod_held_its_devices_until_the_request():
    status = podstatus.unknown(ran=False)
    pod = Pod.of(item(status, deletionTimestamp=stamp(120), deletionGracePeriodSeconds=30))
    assert pod.proof == at(90)
    collected = Pod.of(item(status, deletionTimestamp=stamp(500), deletionGracePeriodSeconds=0))
    assert collected.proof < at(100) or collected.proof != at(500)


def test_a_pod_whose_deletion_is_overdue_but_which_has_ended_is_not_on_a_lost_node():
    pod = Pod.of(item(podstatus.ended(1), deletionTimestamp=stamp(20)))
    assert not pod.lost(at(1000))
    assert replace(pod, phase="Running", containers_ended=False).lost(at(1000))
