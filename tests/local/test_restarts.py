"""Components of the cluster are killed: what the pods and the API show afterwards."""

import os
import signal
import time

import pytest

from finetune_local.cluster import ClusterError
from finetune_local.processes import children_of, command_of
from tests.installed import wait_for
from tests.local.pods import container, create, ended, exits, get, logs, pod, processes_with, run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def agent_of(cluster, node: str) -> int:
    return cluster.component(f"{cluster.name}-{node}")


def on(cluster, node: str) -> dict[str, str]:
    return {"kubernetes.io/hostname": f"{cluster.name}-{node}"}


def test_a_killed_agent_takes_its_pods_along_and_says_so(cluster):
    env = [{"name": "MARKER", "value": "agent-victim"}]
    loop = "trap 'echo never' TERM; echo up; sleep 1000 & while true; do sleep 0.1; done"
    init = container("echo prepared", "prepare")
    node = on(cluster, "node-1")
    run(cluster, pod("restart-done", container("echo done"), nodeSelector=node))
    victim = pod(
        "restart-victim", container(loop, env=env), initContainers=[init], nodeSelector=node
    )
    create(cluster, victim)
    wait_for("it runs", lambda: "up" in logs(cluster, "restart-victim"))
    before = get(cluster, "restart-victim")["status"]
    assert len(processes_with("MARKER=agent-victim")) >= 2
    agent = agent_of(cluster, "node-1")
    os.kill(agent, signal.SIGKILL)
    wait_for("no process is left", lambda: not processes_with("MARKER=agent-victim"), 5)

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


def test_what_a_stuck_shim_holds_is_ended_by_the_next_agent(cluster):
    """The shim cannot notice that its agent is gone; nobody notes how the container ended."""
    env = [{"name": "MARKER", "value": "shim-victim"}]
    node = on(cluster, "node-1")
    create(cluster, pod("stuck", container("echo up; sleep 1000", env=env), nodeSelector=node))
    wait_for("it runs", lambda: "up" in logs(cluster, "stuck"))
    agent = agent_of(cluster, "node-1")
    (shim,) = (pid for pid in children_of(agent) if "shim.py" in " ".join(command_of(pid)))
    os.kill(shim, signal.SIGSTOP)
    cluster.kill_component(f"{cluster.name}-node-1")
    assert processes_with("MARKER=shim-victim")
    assert exits(ended(cluster, "stuck"))["main"]["exitCode"] == 137
    assert not processes_with("MARKER=shim-victim")


def test_a_component_that_is_held_down_stays_down_until_it_is_started(cluster):
    cluster.kill_component("kube-scheduler", stay_down=True)
    create(cluster, pod("unscheduled", container("true")))
    time.sleep(2)  # the supervisor starts others again after one second
    assert cluster.component("kube-scheduler") is None
    assert "nodeName" not in get(cluster, "unscheduled")["spec"]
    cluster.start_component("kube-scheduler")
    assert ended(cluster, "unscheduled")["phase"] == "Succeeded"
    with pytest.raises(ClusterError, match="there are etcd"):
        cluster.kill_component("kube-proxy")


@pytest.mark.parametrize("name", ["kube-apiserver", "etcd"])
def test_pods_outlive_the_control_plane(cluster, name):
    """A pod ends while nobody can be told; it is told later."""
    victim = f"outlives-{name}"
    create(cluster, pod(victim, container("echo up; sleep 2; exit 3")))
    wait_for("it runs", lambda: "up" in logs(cluster, victim))
    before = cluster.component(name)
    cluster.kill_component(name)
    wait_for("it is back", lambda: logs(cluster, victim) and cluster.component(name) != before)
    end = exits(ended(cluster, victim))["main"]
    assert end["exitCode"] == 3


def test_a_lost_node_is_not_ready_and_comes_back(cluster):
    node = f"{cluster.name}-node-2"
    cluster.kill_component(node, stay_down=True)
    cluster.kubectl("wait", "--for=condition=Ready=Unknown", f"node/{node}", "--timeout=60s")
    cluster.start_component(node)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=30s")
