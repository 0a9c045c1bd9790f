"""The local cluster behaves as a real one, and down means down."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from finetune_local.cluster import Cluster, ClusterError
from tests.installed import wait_for

pytestmark = pytest.mark.cluster


def make_pod(name: str, command: list[str], **changes) -> str:
    container = {"name": "main", "image": "finetune-trainer:local", "command": command}
    spec = {"restartPolicy": "Never", "containers": [container | changes.pop("container", {})]}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": spec | changes,
        }
    )


def wait_until(cluster: Cluster, pod: str, phase: str) -> None:
    cluster.kubectl("wait", f"--for=jsonpath={{.status.phase}}={phase}", f"pod/{pod}")


def test_secrets_are_readable_by_their_owner_only(cluster):
    for path in cluster.directory.rglob("*"):
        if path.suffix in (".key", ".conf"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_second_cluster_of_that_name_is_refused(cluster):
    with pytest.raises(ClusterError, match="runs already"):
        Cluster.up(cluster.name)


def test_logs_are_followed_and_the_exit_is_told(cluster):
    script = "echo a; sleep 0.5; echo b; exit 3"
    cluster.kubectl("create", "-f", "-", stdin=make_pod("talker", ["sh", "-c", script]))
    wait_for("it started", lambda: "a" in logs(cluster, "talker"))
    assert cluster.kubectl("logs", "-f", "talker") == "a\nb\n"
    wait_until(cluster, "talker", "Failed")
    text = cluster.kubectl("describe", "pod", "talker")
    assert "Exit Code:    3" in text


def logs(cluster: Cluster, pod: str) -> str:
    try:
        return cluster.kubectl("logs", pod)
    except ClusterError:
        return ""


def test_a_deleted_pod_gets_sigterm_and_its_grace(cluster):
    script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done"
    cluster.kubectl("create", "-f", "-", stdin=make_pod("polite", ["sh", "-c", script]))
    wait_for("it started", lambda: "up" in logs(cluster, "polite"))
    follow = subprocess.Popen(
        ["kubectl", "--kubeconfig", str(cluster.kubeconfig), "logs", "-f", "polite"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": f"{_binaries()}:{os.environ['PATH']}"},
    )
    assert follow.stdout.readline() == "up\n"
    started = time.monotonic()
    cluster.kubectl("delete", "pod", "polite")
    assert time.monotonic() - started < 20
    rest, _ = follow.communicate(timeout=10)
    assert "bye" in rest


def _binaries() -> Path:
    from finetune_local.build import binaries

    return binaries()


def test_environment_from_secrets_fields_and_the_pods_own_user(cluster):
    cluster.kubectl("create", "secret", "generic", "token", "--from-literal=KEY=s3cret")
    env = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "GREETING", "value": "hello $(POD_IP)"},
    ]
    container = {"env": env, "envFrom": [{"secretRef": {"name": "token"}}]}
    command = ["sh", "-c", "echo $KEY $GREETING $(id -u) $$$$"]
    cluster.kubectl("create", "-f", "-", stdin=make_pod("env", command, container=container))
    wait_until(cluster, "env", "Succeeded")
    ip = cluster.kubectl("get", "pod", "env", "-o", "jsonpath={.status.podIP}")
    assert cluster.kubectl("logs", "env") == f"s3cret hello {ip} 65532 1\n"


def test_an_unknown_image_waits_and_says_so(cluster):
    pod = make_pod("foreign", ["true"], container={"image": "nowhere/x:1"})
    cluster.kubectl("create", "-f", "-", stdin=pod)
    wait_for(
        "ImagePullBackOff",
        lambda: "ImagePullBackOff" in cluster.kubectl("get", "pod", "foreign"),
    )
    assert "nowhere/x:1" in cluster.kubectl("describe", "pod", "foreign")
    cluster.kubectl("delete", "pod", "foreign")


def test_init_containers_run_first_and_a_failure_stops_the_pod(cluster):
    init = {"name": "first", "image": "finetune-trainer:local", "command": ["false"]}
    pod = make_pod("init", ["echo", "never"], initContainers=[init])
    cluster.kubectl("create", "-f", "-", stdin=pod)
    wait_until(cluster, "init", "Failed")
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
    mount = {"name": "v", "mountPath": "/data"}
    security = {"fsGroup": 65532}
    for name, command, read_only in (
        ("writer", "echo kept > /data/file", False),
        ("reader", "cat /data/file; touch /data/x || echo refused", True),
    ):
        container = {"volumeMounts": [mount | {"readOnly": read_only}]}
        pod = make_pod(
            name,
            ["sh", "-c", command],
            container=container,
            volumes=volumes,
            securityContext=security,
        )
        cluster.kubectl("create", "-f", "-", stdin=pod)
        wait_until(cluster, name, "Succeeded")
    text = cluster.kubectl("logs", "reader")
    assert text.startswith("kept\n")
    assert text.endswith("refused\n")


def test_devices_are_counted_by_the_scheduler(cluster):
    resources = {"limits": {"finetune.dev/cpu-device": "5"}}
    cluster.kubectl(
        "create", "-f", "-", stdin=make_pod("greedy", ["true"], container={"resources": resources})
    )
    wait_for(
        "unschedulable",
        lambda: (
            "Insufficient finetune.dev/cpu-device" in cluster.kubectl("describe", "pod", "greedy")
        ),
    )
    cluster.kubectl("delete", "pod", "greedy")
