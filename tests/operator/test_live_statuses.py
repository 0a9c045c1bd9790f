"""Pods whose statuses a scripted kubelet writes as a real one does, on the real API server."""

import json
import time
from collections.abc import Iterator

import pytest

from finetune_local.cluster import Cluster
from tests.installed import Operator, finished, install, pods, status, wait_for
from tests.operator import podstatus, test_live
from tests.operator.kubelet import Kubelet, names
from tests.operator.lives import NODE
from tests.operator.worlds import OUTPUT, progressed, result

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=test_live.CLAIM)
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(node))
    return control_plane


@pytest.fixture
def operator(api: Cluster, tmp_path) -> Iterator[Operator]:
    running = Operator(api, tmp_path / "operator.log")
    running.start()
    yield running
    running.kill()


def _exist(api: Cluster, job: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods(api, job)}


def test_the_logs_of_crashed_workers_and_of_a_job_that_succeeded_are_kept(api, operator):
    kubelet = Kubelet(api)
    test_live.apply(api, "logs")
    test_live.prepare(api, kubelet, "logs")
    for index, code in ((0, 88), (1, 137)):
        kubelet.write(f"logs-1-{index}", podstatus.terminated(code))  # the phase is still Running
    wait_for("the end", lambda: status(api, "logs")["attempts"][0].get("outcome") == "Failed")
    for index in (0, 1):
        kubelet.write(f"logs-1-{index}", {"phase": "Failed"})
    test_live.gang(api, kubelet, "logs", 2)
    assert {"logs-1-0", "logs-1-1"} <= _exist(api, "logs")
    succeeded = result(output=OUTPUT, **progressed(100, saved=100))
    kubelet.write("logs-2-0", podstatus.terminated(0, succeeded))
    kubelet.write("logs-2-1", podstatus.terminated(0))
    assert finished(api, "logs")["phase"] == "Succeeded"
    assert {"logs-2-0", "logs-2-1"} <= names(api, "logs")


REFUSALS = {
    "evicted-early": podstatus.refused("Evicted", "The node was low on resource", waits=True),
    "not-admitted": podstatus.refused("UnexpectedAdmissionError", "Allocate failed: no devices"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_pod_that_ended_before_its_containers_started_ends_its_attempt(api, operator, name):
    kubelet = Kubelet(api)
    test_live.apply(api, name)
    wait_for("prepare pod", lambda: f"{name}-prepare" in names(api, name))
    kubelet.run(f"{name}-prepare")
    kubelet.end(f"{name}-prepare", 0, result(prepared=test_live.prepared()))
    wait_for("the gang", lambda: {f"{name}-1-0", f"{name}-1-1"} <= names(api, name))
    disrupted = podstatus.disrupted("TerminationByKubelet", "The node was low on resource")
    refused = REFUSALS[name]
    refused = refused | {"conditions": [*refused["conditions"], disrupted]}
    kubelet.write(f"{name}-1-0", refused)
    attempt = wait_for("the end", lambda: _ended(api, name), 30)
    assert attempt["reason"] == refused["reason"]
    assert refused["message"] in attempt["message"]
    assert "never ran" in attempt["message"]


def _ended(api: Cluster, job: str):
    attempts = status(api, job).get("attempts", [])
    return attempts[0] if attempts and attempts[0].get("outcome") else None


def test_the_time_of_a_pod_that_was_drained_while_it_pulled_its_image_is_charged(api, operator):
    kubelet = Kubelet(api)
    test_live.apply(api, "pull")
    wait_for("prepare pod", lambda: "pull-prepare" in names(api, "pull"))
    kubelet.run("pull-prepare")
    kubelet.end("pull-prepare", 0, result(prepared=test_live.prepared()))
    wait_for("the gang", lambda: {"pull-1-0", "pull-1-1"} <= names(api, "pull"))
    kubelet.bind("pull-1-0", NODE)
    pulling = podstatus.pulling()
    kubelet.write("pull-1-0", pulling)
    time.sleep(5)
    drained = podstatus.disrupted("EvictionByEvictionAPI", "Eviction API: evicting")
    kubelet.write(
        "pull-1-0", podstatus.unknown(ran=False, condition=drained, bound=pulling["startTime"])
    )
    wait_for("the end", lambda: _ended(api, "pull"), 30)
    usage = status(api, "pull")["usage"]
    assert usage["deviceSeconds"] >= 4 * 5
    assert usage["estimated"]
