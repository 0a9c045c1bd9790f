"""The helper pod of the documentation, `kubectl exec` and `kubectl cp`, and restarts in place."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetune_local.build import binaries
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from finetune_local.node import restart_policy
from finetune_local.node.container_record import Termination
from finetune_local.node.status import State
from tests.installed import wait_for
from tests.local.pods import container, create, ended, get, logs, pod
from tests.tools import components

CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "workspace"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


@pytest.fixture(scope="module")
def helper(cluster: Cluster) -> Iterator[Cluster]:
    """A cluster with the helper pod of the quick start, as it is in the examples."""
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(CLAIM))
    cluster.kubectl("apply", "-f", str(TREE / "examples" / "helper.yaml"))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/helper", "--timeout=60s")
    yield cluster
    cluster.kubectl("delete", "pod", "helper")


def kubectl(cluster: Cluster, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess":
    command = [str(binaries() / "kubectl"), "--kubeconfig", str(cluster.kubeconfig), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, check=False)


@pytest.mark.cluster
@pytest.mark.slow
def test_files_are_copied_as_the_quick_start_shows(helper: Cluster, tmp_path: Path):
    data = os.urandom(3_000_000)
    (tmp_path / "chats.jsonl").write_bytes(data)
    folder = "/mnt/workspace/data"
    made = kubectl(helper, "exec", "helper", "--", "mkdir", "-p", folder)
    assert made.returncode == 0, made.stderr
    copied = kubectl(helper, "cp", f"{tmp_path}/chats.jsonl", f"helper:{folder}/chats.jsonl")
    assert copied.returncode == 0, copied.stderr
    script = f"id -u; stat -c %u {folder}/chats.jsonl; pwd; hostname"
    shown = kubectl(helper, "exec", "helper", "--", "sh", "-c", script)
    assert shown.stdout == b"65532\n65532\n/\nhelper\n", shown.stderr
    back = kubectl(helper, "cp", f"helper:{folder}/chats.jsonl", f"{tmp_path}/back.jsonl")
    assert back.returncode == 0, back.stderr
    assert (tmp_path / "back.jsonl").read_bytes() == data
    packed = kubectl(
        helper, "exec", "helper", "--", "tar", "-C", "/mnt/workspace", "-cf", "-", "data"
    )
    assert len(packed.stdout) > len(data)


@pytest.mark.cluster
@pytest.mark.slow
def test_streams_and_exit_codes_of_commands(helper: Cluster):
    text = b"x" * 300_000 + b"\nend"
    done = kubectl(helper, "exec", "-i", "helper", "--", "cat", stdin=text)
    assert (done.returncode, done.stdout) == (0, text)
    done = kubectl(helper, "exec", "helper", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, b"out\n")
    assert done.stderr.startswith(b"err\n")
    done = kubectl(helper, "exec", "helper", "--", "no-such-program")
    assert done.returncode == 126
    assert b"no-such-program: [Errno 2]" in done.stderr
    done = kubectl(helper, "exec", "missing", "--", "true")
    assert b'pods "missing" not found' in done.stderr


@pytest.mark.cluster
@pytest.mark.slow
def test_a_terminal_is_refused_with_a_message(helper: Cluster):
    program = [str(binaries() / "kubectl"), "--kubeconfig", str(helper.kubeconfig)]
    _, terminal = pty.openpty()
    done = subprocess.run(
        [*program, "exec", "-it", "helper", "--", "sh"],
        stdin=terminal,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "this process node offers no terminal: leave out --tty" in done.stdout + done.stderr


@pytest.mark.cluster
@pytest.mark.slow
def test_a_command_ends_with_its_client_and_with_its_pod(helper: Cluster):
    program = [str(binaries() / "kubectl"), "--kubeconfig", str(helper.kubeconfig)]
    sleep = ["exec", "helper", "--", "sh", "-c", "echo begun; exec sleep 4321"]
    with subprocess.Popen([*program, *sleep], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"begun\n"
        client.kill()
    listed = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"

    def is_gone() -> bool:
        shown = kubectl(helper, "exec", "helper", "--", "sh", "-c", listed)
        return shown.returncode == 0 and b"sleep 4321" not in shown.stdout

    wait_for("the command to end", is_gone, 20)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_container_is_started_again_with_its_previous_log(cluster: Cluster):
    claim = {"name": "v", "emptyDir": {}}
    mount = [{"name": "v", "mountPath": "/v"}]
    script = (
        "n=$(cat /v/n 2>/dev/null || echo 0); echo run $n; echo $((n + 1)) > /v/n; test $n -ge 1"
    )
    item = pod("started-again", container(script, volumeMounts=mount), volumes=[claim])
    create(cluster, item | {"spec": item["spec"] | {"restartPolicy": "OnFailure"}})
    status = ended(cluster, "started-again")
    (state,) = status["containerStatuses"]
    assert status["phase"] == "Succeeded"
    assert state["restartCount"] == 1
    assert state["lastState"]["terminated"]["exitCode"] == 1
    assert logs(cluster, "started-again") == "run 1\n"
    assert logs(cluster, "started-again", "--previous") == "run 0\n"


@pytest.mark.cluster
@pytest.mark.slow
def test_a_pod_that_always_restarts_waits_between_starts_and_can_be_deleted(cluster: Cluster):
    item = pod("loop", container("exit 4"))
    create(cluster, item | {"spec": item["spec"] | {"restartPolicy": "Always"}})

    def state():
        (found,) = get(cluster, "loop")["status"].get("containerStatuses") or [{}]
        return (
            found
            if found.get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff"
            else None
        )

    found = wait_for("the back-off", state, 30)
    assert found["state"]["waiting"]["message"] == "back-off 10s restarting failed container=main"
    assert found["lastState"]["terminated"]["exitCode"] == 4
    assert get(cluster, "loop")["status"]["phase"] == "Running"
    cluster.kubectl("delete", "pod", "loop", "--timeout=20s")


@pytest.mark.cluster
@pytest.mark.slow
def test_the_helper_pod_is_started_again_after_its_node_was(helper: Cluster):
    node = get(helper, "helper")["spec"]["nodeName"]
    before = get(helper, "helper")["status"]["containerStatuses"][0]["restartCount"]
    components.kill(helper, node)

    def is_running() -> bool:
        (state,) = get(helper, "helper")["status"]["containerStatuses"]
        return state["restartCount"] == before + 1 and "running" in state["state"]

    wait_for("the pod to run again", is_running, 60)
    assert kubectl(helper, "exec", "helper", "--", "true").returncode == 0


STARTED_AGAIN = {  # policy, exit code, init container
    ("Never", 1, False): False,
    ("Never", 0, True): False,
    ("OnFailure", 1, False): True,
    ("OnFailure", 0, False): False,
    ("OnFailure", 1, True): True,
    ("Always", 0, False): True,
    ("Always", 1, True): True,
    ("Always", 0, True): False,
}


def an_end(code: int = 1, *, seconds: int = 5) -> Termination:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return Termination(code, start, start + timedelta(seconds=seconds), "")


@pytest.mark.parametrize(("policy", "code", "init"), STARTED_AGAIN)
def test_the_restart_policy_decides_what_is_started_again(policy, code, init):
    item = {"spec": {"restartPolicy": policy}}
    state = State(ended=an_end(code))
    assert restart_policy.starts_again(item, state, init=init) is STARTED_AGAIN[policy, code, init]


def test_the_delay_before_a_start_doubles_up_to_five_minutes():
    delays = [restart_policy.delay(State(ended=an_end(), restarts=n)) for n in range(8)]
    assert delays == [0, 10, 20, 40, 80, 160, 300, 300]
    assert restart_policy.delay(State(ended=an_end(seconds=700), restarts=7)) == 10
