"""How pods go: in time, by force, and in the middle of starting."""

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
    keep,
    let_go,
    logs,
    pod,
    processes_with,
    run,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
STUBBORN = "trap 'echo no' TERM; echo up; while true; do sleep 0.1; done"


def test_a_later_deletion_shortens_the_grace(cluster):
    item = pod("impatient", container(STUBBORN), terminationGracePeriodSeconds=600)
    create(cluster, keep(item))
    wait_for("it runs", lambda: "up" in logs(cluster, "impatient"))
    cluster.kubectl("delete", "pod", "impatient", "--wait=false")
    wait_for("it was asked", lambda: "no" in logs(cluster, "impatient"))
    cluster.kubectl("delete", "pod", "impatient", "--wait=false", "--grace-period=1")
    assert exits(ended(cluster, "impatient", 15))["main"]["exitCode"] == 137
    let_go(cluster, "impatient")


def test_a_pod_deleted_by_force_leaves_no_process_and_ends_its_followers(cluster):
    env = [{"name": "MARKER", "value": "by-force"}]
    create(cluster, pod("forced", container(STUBBORN, env=env)))
    wait_for("it runs", lambda: "up" in logs(cluster, "forced"))
    with followed(cluster, "forced", "up") as rest:
        cluster.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
        assert rest() == ""
    wait_for("no process is left", lambda: not processes_with("MARKER=by-force"), 10)


def test_a_pod_deleted_while_it_starts_is_gone_soon(cluster):
    """SIGTERM must reach a container whose process is not there yet."""
    for number in range(3):
        name = f"hasty-{number}"
        create(cluster, pod(name, container("sleep 1000"), terminationGracePeriodSeconds=60))
        time.sleep(0.15 * number)
        started = time.monotonic()
        wait_for(f"{name} is bound", lambda name=name: "nodeName" in get(cluster, name)["spec"])
        cluster.kubectl("delete", "pod", name, "--grace-period=2", "--timeout=15s")
        assert time.monotonic() - started < 15


def test_a_deletion_between_two_containers_waits_for_the_first(cluster):
    """The second container never starts: its Secret is missing."""
    env = [{"name": "MARKER", "value": "first-of-two"}]
    reference = {"secretKeyRef": {"name": "nowhere", "key": "k"}}
    second = container("echo never", "second", env=[{"name": "K", "valueFrom": reference}])
    script = "trap 'sleep 1; echo bye; exit 7' TERM; echo up; while true; do sleep 0.1; done"
    create(cluster, keep(pod("two", container(script, env=env), second)))
    wait_for("the first runs", lambda: "up" in logs(cluster, "two", "-c", "main"))
    cluster.kubectl("delete", "pod", "two", "--wait=false")

    def told() -> dict:
        return exits(get(cluster, "two")["status"])["main"]

    assert wait_for("the first has ended", told)["exitCode"] == 7
    assert not processes_with("MARKER=first-of-two")
    let_go(cluster, "two")


def test_two_containers_end_by_themselves_and_both_count(cluster):
    create(cluster, pod("pair", container("exit 4"), container("sleep 1; echo b", "second")))
    status = ended(cluster, "pair")
    assert status["phase"] == "Failed"
    assert {name: end["exitCode"] for name, end in exits(status).items()} == {
        "main": 4,
        "second": 0,
    }
    assert logs(cluster, "pair", "-c", "second") == "b\n"


def test_a_name_can_be_used_again_at_once(cluster):
    assert run(cluster, pod("again", container("echo 1"))) == "1\n"
    cluster.kubectl("delete", "pod", "again")
    assert run(cluster, pod("again", container("echo 2"))) == "2\n"
