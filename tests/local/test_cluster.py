"""The local cluster behaves as a real one."""

import json
import os
import time

import pytest

from finetune_local.cluster import Cluster, ClusterError
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
    run,
    waiting,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_secrets_are_readable_by_their_owner_only(cluster):
    for path in cluster.directory.rglob("*"):
        if path.suffix in (".key", ".conf"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_cluster_of_that_name_is_refused(cluster):
    with pytest.raises(ClusterError, match="runs already"):
        Cluster.up(cluster.name)
    assert "Ready" in cluster.kubectl("get", "nodes")


def test_logs_are_followed_and_the_exit_is_told(cluster):
    create(cluster, pod("talker", container("echo a; sleep 1; echo b; exit 3")))
    wait_for("it started", lambda: "a" in logs(cluster, "talker"))
    with followed(cluster, "talker", "a") as rest:
        assert rest() == "b\n"
    status = ended(cluster, "talker")
    assert status["phase"] == "Failed"
    assert exits(status)["main"]["exitCode"] == 3
    assert exits(status)["main"]["reason"] == "Error"


def test_a_deleted_pod_gets_sigterm_and_its_grace(cluster):
    script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    create(cluster, pod("polite", container(script)))
    wait_for("it started", lambda: "up" in logs(cluster, "polite"))
    with followed(cluster, "polite", "up") as rest:
        started = time.monotonic()
        cluster.kubectl("delete", "pod", "polite")
        assert time.monotonic() - started < 20
        assert rest() == "bye\n"


def test_environment_from_secrets_fields_and_the_pods_own_user(cluster):
    cluster.kubectl("create", "secret", "generic", "token", "--from-literal=KEY=s3cret")
    env = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "GREETING", "value": "hello $(POD_IP)"},
    ]
    sources = [{"secretRef": {"name": "token"}}]
    script = "echo $KEY $GREETING $(id -u) $$$$"
    said = run(cluster, pod("env", container(script, env=env, envFrom=sources)))
    ip = get(cluster, "env")["status"]["podIP"]
    assert said == f"s3cret hello {ip} 65532 1\n"


def test_ranks_share_the_cores_as_the_nodes_share_them(cluster):
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    devices = sum(int(node["status"]["capacity"]["finetune.dev/cpu-device"]) for node in nodes)
    threads = run(cluster, pod("threads", container("echo $OMP_NUM_THREADS")))
    assert int(threads) == max(1, os.cpu_count() // devices)


def test_an_unknown_image_waits_and_says_so(cluster):
    create(cluster, pod("foreign", container("true", image="nowhere/x:1")))
    reason, message = wait_for(
        "it says so", lambda: waiting(cluster, "foreign")[1] and waiting(cluster, "foreign")
    )
    assert reason == "ImagePullBackOff"
    assert "nowhere/x:1" in message
    cluster.kubectl("delete", "pod", "foreign")


def test_an_init_container_that_fails_stops_the_pod(cluster):
    first = container("exit 5", "first")
    create(cluster, pod("init", container("echo never"), initContainers=[first]))
    status = ended(cluster, "init")
    assert status["phase"] == "Failed"
    assert exits(status, "initContainerStatuses")["first"]["exitCode"] == 5
    assert logs(cluster, "init") == ""


def test_a_claim_is_bound_mounted_and_kept_between_pods(cluster):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(claim))
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]

    def using(name: str, script: str, *, read_only: bool) -> str:
        mount = {"name": "v", "mountPath": "/data", "readOnly": read_only}
        return run(cluster, pod(name, container(script, volumeMounts=[mount]), volumes=volumes))

    using("writer", "echo kept > /data/file", read_only=False)
    script = "cat /data/file; touch /data/x 2>/dev/null || echo refused"
    assert using("reader", script, read_only=True) == "kept\nrefused\n"


def test_devices_are_counted_by_the_scheduler(cluster):
    resources = {"limits": {"finetune.dev/cpu-device": "5"}}
    create(cluster, pod("greedy", container("true", resources=resources)))
    words = "Insufficient finetune.dev/cpu-device"
    wait_for("unschedulable", lambda: words in cluster.kubectl("describe", "pod", "greedy"))
    cluster.kubectl("delete", "pod", "greedy")
