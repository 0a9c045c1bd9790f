"""The local cluster behaves like a real one."""

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


def test_keys_and_kubeconfigs_are_readable_only_by_their_owner(cluster):
    for path in cluster.directory.rglob("*"):
        if path.suffix in (".key", ".conf"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_cluster_of_the_same_name_is_refused(cluster):
    with pytest.raises(ClusterError, match="already runs"):
        Cluster.up(cluster.name)
    assert "Ready" in cluster.kubectl("get", "nodes")


def test_logs_are_followed_and_the_exit_code_is_reported(cluster):
    create(cluster, pod("talker", container("echo a; sleep 1; echo b; exit 3")))
    wait_for("the pod to start", lambda: "a" in logs(cluster, "talker"))
    with followed(cluster, "talker", "a") as rest:
        assert rest() == "b\n"
    status = ended(cluster, "talker")
    assert status["phase"] == "Failed"
    assert exits(status)["main"]["exitCode"] == 3
    assert exits(status)["main"]["reason"] == "Error"


def test_a_deleted_pod_gets_sigterm_and_time_to_end(cluster):
    script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    create(cluster, pod("polite", container(script)))
    wait_for("the pod to start", lambda: "up" in logs(cluster, "polite"))
    with followed(cluster, "polite", "up") as rest:
        started = time.monotonic()
        cluster.kubectl("delete", "pod", "polite")
        assert time.monotonic() - started < 20
        assert rest() == "bye\n"


def test_the_environment_contains_secrets_and_pod_fields(cluster):
    cluster.kubectl("create", "secret", "generic", "token", "--from-literal=KEY=s3cret")
    env = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "GREETING", "value": "hello $(POD_IP)"},
    ]
    sources = [{"secretRef": {"name": "token"}}]
    script = "echo $KEY $GREETING $(id -u) $$$$"
    output = run(cluster, pod("env", container(script, env=env, envFrom=sources)))
    ip = get(cluster, "env")["status"]["podIP"]
    assert output == f"s3cret hello {ip} 65532 1\n"


def test_omp_num_threads_is_a_devices_share_of_the_cores(cluster):
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    devices = sum(int(node["status"]["capacity"]["finetune.dev/cpu-device"]) for node in nodes)
    threads = run(cluster, pod("threads", container("echo $OMP_NUM_THREADS")))
    assert int(threads) == max(1, os.cpu_count() // devices)


def test_a_pod_with_an_unknown_image_waits_with_a_message(cluster):
    create(cluster, pod("foreign", container("true", image="nowhere/x:1")))
    reason, message = wait_for(
        "the message", lambda: waiting(cluster, "foreign")[1] and waiting(cluster, "foreign")
    )
    assert reason == "ImagePullBackOff"
    assert "nowhere/x:1" in message
    cluster.kubectl("delete", "pod", "foreign")


def test_a_failed_init_container_fails_the_pod(cluster):
    first = container("exit 5", "first")
    create(cluster, pod("init", container("echo never"), initContainers=[first]))
    status = ended(cluster, "init")
    assert status["phase"] == "Failed"
    assert exits(status, "initContainerStatuses")["first"]["exitCode"] == 5
    assert logs(cluster, "init") == ""


def test_a_claim_is_mounted_and_keeps_its_files_between_pods(cluster):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(claim))
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]

    def run_with_claim(name: str, script: str, *, read_only: bool) -> str:
        mount = {"name": "v", "mountPath": "/data", "readOnly": read_only}
        return run(cluster, pod(name, container(script, volumeMounts=[mount]), volumes=volumes))

    run_with_claim("writer", "echo kept > /data/file", read_only=False)
    script = "cat /data/file; touch /data/x 2>/dev/null || echo refused"
    assert run_with_claim("reader", script, read_only=True) == "kept\nrefused\n"


def test_the_scheduler_counts_devices(cluster):
    resources = {"limits": {"finetune.dev/cpu-device": "5"}}
    create(cluster, pod("greedy", container("true", resources=resources)))
    message = "Insufficient finetune.dev/cpu-device"
    wait_for(
        "the scheduler's message", lambda: message in cluster.kubectl("describe", "pod", "greedy")
    )
    cluster.kubectl("delete", "pod", "greedy")
