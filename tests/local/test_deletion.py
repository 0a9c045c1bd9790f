"""Pods are deleted with a grace period, by force and while they start."""

import time

import pytest

from tests.installed import wait_for
from tests.local.pods import (
    container,
    create,
    ended,
    exits,
    followed,
    get,
    logs,
    pod,
    processes_with,
    remove_finalizer,
    run,
    with_finalizer,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
STUBBORN = "trap 'echo no' TERM; echo up; while true; do sleep 0.1; done"


def test_a_later_deletion_shortens_the_grace_period(cluster):
    item = pod("impatient", container(STUBBORN), terminationGracePeriodSeconds=600)
    create(cluster, with_finalizer(item))
    wait_for("the pod to run", lambda: "up" in logs(cluster, "impatient"))
    cluster.kubectl("delete", "pod", "impatient", "--wait=false")
    wait_for("SIGTERM to arrive", lambda: "no" in logs(cluster, "impatient"))
    cluster.kubectl("delete", "pod", "impatient", "--wait=false", "--grace-period=1")
    assert exits(ended(cluster, "impatient", 15))["main"]["exitCode"] == 137
    remove_finalizer(cluster, "impatient")


def test_a_forced_deletion_ends_the_processes_and_followed_logs(cluster):
    env = [{"name": "MARKER", "value": "by-force"}]
    create(cluster, pod("forced", container(STUBBORN, env=env)))
    wait_for("the pod to run", lambda: "up" in logs(cluster, "forced"))
    with followed(cluster, "forced", "up") as rest:
        cluster.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
        assert rest() == ""
    wait_for("all its processes to end", lambda: not processes_with("MARKER=by-force"), 10)


def test_a_pod_deleted_while_it_starts_ends_within_its_grace_period(cluster):
    """SIGTERM must also reach a container whose process does not exist yet."""
    for number in range(3):
        name = f"hasty-{number}"
        create(cluster, pod(name, container("sleep 1000"), terminationGracePeriodSeconds=60))
        time.sleep(0.15 * number)
        started = time.monotonic()
        wait_for(f"{name} to be bound", lambda name=name: "nodeName" in get(cluster, name)["spec"])
        cluster.kubectl("delete", "pod", name, "--grace-period=2", "--timeout=15s")
        assert time.monotonic() - started < 15


def test_a_hook_runs_in_the_container_before_it_is_stopped(cluster):
    script = "trap 'cat /tmp/hook; exit 7' TERM; echo up; while true; do sleep 0.1; done"
    hook = "sleep 0.5; id -u > /tmp/hook; hostname >> /tmp/hook; head -c 2 /proc/1/cmdline >> $FILE"
    env = [{"name": "FILE", "value": "/tmp/hook"}]
    lifecycle = {"preStop": {"exec": {"command": ["sh", "-c", hook]}}}
    stopped = container(script, env=env, lifecycle=lifecycle)
    create(cluster, with_finalizer(pod("hooked", stopped, securityContext={"runAsUser": 1234})))
    wait_for("the container to run", lambda: "up" in logs(cluster, "hooked"))
    with followed(cluster, "hooked", "up") as rest:
        cluster.kubectl("delete", "pod", "hooked", "--wait=false")
        assert exits(ended(cluster, "hooked"))["main"]["exitCode"] == 7
        assert rest().split() == ["1234", "hooked", "sh"]
    remove_finalizer(cluster, "hooked")


def test_a_deletion_between_two_containers_waits_for_the_first(cluster):
    """The second container never starts: its Secret is missing."""
    env = [{"name": "MARKER", "value": "first-of-two"}]
    reference = {"secretKeyRef": {"name": "nowhere", "key": "k"}}
    second = container("echo never", "second", env=[{"name": "K", "valueFrom": reference}])
    script = "trap 'sleep 1; echo bye; exit 7' TERM; echo up; while true; do sleep 0.1; done"
    create(cluster, with_finalizer(pod("two", container(script, env=env), second)))
    wait_for("the first container to run", lambda: "up" in logs(cluster, "two", "-c", "main"))
    cluster.kubectl("delete", "pod", "two", "--wait=false")

    def terminated() -> dict:
        return exits(get(cluster, "two")["status"])["main"]

    assert wait_for("the first container to end", terminated)["exitCode"] == 7
    assert not processes_with("MARKER=first-of-two")
    remove_finalizer(cluster, "two")


def test_a_pod_fails_if_one_of_its_two_containers_fails(cluster):
    create(cluster, pod("pair", container("exit 4"), container("sleep 1; echo b", "second")))
    status = ended(cluster, "pair")
    assert status["phase"] == "Failed"
    assert {name: end["exitCode"] for name, end in exits(status).items()} == {
        "main": 4,
        "second": 0,
    }
    assert logs(cluster, "pair", "-c", "second") == "b\n"


def test_the_name_of_a_deleted_pod_can_be_reused_at_once(cluster):
    assert run(cluster, pod("again", container("echo 1"))) == "1\n"
    cluster.kubectl("delete", "pod", "again")
    assert run(cluster, pod("again", container("echo 2"))) == "2\n"
