"""Pods and their statuses after components of the cluster were killed."""

import os
import signal
import time

import pytest

from finetune_local.cluster import ClusterError
from finetune_local.processes import children_of, command_of
from tests.installed import wait_for
from tests.local.pods import container, create, ended, exits, get, logs, pod, processes_with, run
from tests.tools import components

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def agent_of(cluster, node: str) -> int:
    return components.pid(cluster, f"{cluster.name}-{node}")


def on(cluster, node: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": f"{cluster.name}-{node}"}


def test_pods_of_a_killed_agent_are_killed_and_reported_as_ended(cluster):
    env = [{"name": "MARKER", "value": "agent-victim"}]
    loop = "trap 'echo never' TERM; echo up; sleep 1000 & while true; do sleep 0.1; done"
    init = container("echo prepared", "prepare")
    node = on(cluster, "node-1")
    run(cluster, pod("restart-done", container("echo done"), nodeSelector=node))
    victim = pod(
        "restart-victim", container(loop, env=env), initContainers=[init], nodeSelector=node
    )
    create(cluster, victim)
    wait_for("the pod to run", lambda: "up" in logs(cluster, "restart-victim"))
    before = get(cluster, "restart-victim")["status"]
    assert len(processes_with("MARKER=agent-victim")) >= 2
    agent = agent_of(cluster, "node-1")
    os.kill(agent, signal.SIGKILL)
    wait_for("all its processes to end", lambda: not processes_with("MARKER=agent-victim"), 5)

    status = ended(cluster, "restart-victim")
    assert agent_of(cluster, "node-1") != agent
    end = exits(status)["main"]
    (running,) = (s["state"]["running"] for s in before["containerStatuses"])
    assert (end["exitCode"], end["startedAt"]) == (137, running["startedAt"])
    assert exits(status, "initContainerStatuses")["prepare"]["exitCode"] == 0
    assert status["podIP"] == before["podIP"]
    assert logs(cluster, "restart-victim") == "up\n"
    assert logs(cluster, "restart-victim", "-c", "prepare") == "prepared\n"
    assert logs(cluster, "restart-done") == "done\n"

    run(cluster, pod("restart-after", container("true"), nodeSelector=node))
    addresses = {
        get(cluster, f"restart-{name}")["status"]["podIP"] for name in ("done", "victim", "after")
    }
    assert len(addresses) == 3
    cluster.kubectl("delete", "pod", "restart-done", "restart-victim", "restart-after")


def test_the_next_agent_ends_the_container_of_a_stuck_shim(cluster):
    """The shim neither notices that its agent has ended nor records how the container ended."""
    env = [{"name": "MARKER", "value": "shim-victim"}]
    node = on(cluster, "node-1")
    create(cluster, pod("stuck", container("echo up; sleep 1000", env=env), nodeSelector=node))
    wait_for("the pod to run", lambda: "up" in logs(cluster, "stuck"))
    agent = agent_of(cluster, "node-1")
    (shim,) = (pid for pid in children_of(agent) if "shim.py" in " ".join(command_of(pid)))
    os.kill(shim, signal.SIGSTOP)
    components.kill(cluster, f"{cluster.name}-node-1")
    assert processes_with("MARKER=shim-victim")
    assert exits(ended(cluster, "stuck"))["main"]["exitCode"] == 137
    assert not processes_with("MARKER=shim-victim")


def test_a_killed_component_can_stay_down_until_it_is_started(cluster):
    components.kill(cluster, "kube-scheduler", stay_down=True)
    create(cluster, pod("unscheduled", container("true")))
    time.sleep(2)  # by default the supervisor starts a component again after one second
    assert components.pid(cluster, "kube-scheduler") is None
    assert "nodeName" not in get(cluster, "unscheduled")["spec"]
    components.start(cluster, "kube-scheduler")
    assert ended(cluster, "unscheduled")["phase"] == "Succeeded"
    with pytest.raises(ClusterError, match="there are etcd"):
        components.kill(cluster, "kube-proxy")


@pytest.mark.parametrize("name", ["kube-apiserver", "etcd"])
def test_a_pod_that_ends_while_the_control_plane_is_down_is_reported_later(cluster, name):
    victim = f"outlives-{name}"
    create(cluster, pod(victim, container("echo up; sleep 2; exit 3")))
    wait_for("the pod to run", lambda: "up" in logs(cluster, victim))
    before = components.pid(cluster, name)
    components.kill(cluster, name)
    wait_for(
        "the component to restart",
        lambda: logs(cluster, victim) and components.pid(cluster, name) != before,
    )
    end = exits(ended(cluster, victim))["main"]
    assert end["exitCode"] == 3


def test_a_lost_node_becomes_not_ready_and_recovers(cluster):
    node = f"{cluster.name}-node-2"
    components.kill(cluster, node, stay_down=True)
    cluster.kubectl("wait", "--for=condition=Ready=Unknown", f"node/{node}", "--timeout=60s")
    components.start(cluster, node)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=30s")
