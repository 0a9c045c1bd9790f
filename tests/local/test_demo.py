"""The demo's errors, its background processes and its summary. `make demo` runs all of it."""

import json
import os
import signal
import subprocess
import sys

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import IMAGE
from finetune_local.demo import background, result
from finetune_local.demo.output import DemoError
from tests.installed import wait_for
from tests.namespace import NO_NAMESPACES, run_where, small_disk

DEMO = [sys.executable, "-m", "finetune_local", "demo"]


def refused(before: str) -> str:
    """Run the demo after a shell command in a namespace; return its error message."""
    done = run_where(before, *DEMO)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "PyPI" not in done.stdout, "the demo began its work"
    return done.stderr


def test_a_full_disk_is_reported_before_anything_is_created(tmp_path):
    # build/ itself is left alone: another demo may be running there.
    build = TREE / "build"
    build.mkdir(exist_ok=True)
    message = refused(small_disk(build))
    assert message.startswith("demo: 0.1 GB of disk are free, 6.0 GB are needed: demo 6.0 GB in")


def test_missing_namespaces_are_reported_before_anything_is_created():
    message = refused(NO_NAMESPACES)
    assert message.startswith("demo: the kernel refuses user namespaces")
    assert "sysctl -w" in message


def start(script: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sh", "-c", script])


def test_when_the_operator_ends_the_watch_fails_with_the_end_of_its_log(tmp_path):
    log = tmp_path / "operator.log"
    log.write_text("an old line\n" * 50 + "forbidden: cannot list finetunejobs\n")
    watching = tmp_path / "watching"
    with start("exit 3") as operator, pytest.raises(DemoError) as caught:
        background.watch(
            ["sh", "-c", f"echo $$ > {watching}; exec sleep 100"],
            dict(os.environ),
            operator,
            log,
            lambda: None,
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == f"the operator ended with exit code 3; the end of {log}:"
    assert lines[-1] == "forbidden: cannot list finetunejobs"
    assert len(lines) < 20


@pytest.mark.slow
def test_the_exit_code_of_the_watch_is_returned_while_the_operator_runs(tmp_path):
    with start("sleep 100") as operator:
        code = background.watch(
            ["sh", "-c", "exit 7"], dict(os.environ), operator, tmp_path / "log", lambda: None
        )
        operator.kill()
    assert code == 7


def test_an_interrupted_demo_leaves_no_watch_process(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    pid = tmp_path / "pid"

    def once_it_runs() -> None:
        wait_for("the watch to run", lambda: pid.exists() and pid.read_text().strip(), 10)
        os.kill(int(pid.read_text()), signal.SIGINT)  # as the terminal does to the whole group
        interrupt()

    with start("sleep 100") as operator:
        with pytest.raises(KeyboardInterrupt):
            background.watch(
                ["sh", "-c", f"echo $$ > {pid}; exec sleep 100"],
                dict(os.environ),
                operator,
                tmp_path / "log",
                once_it_runs,
            )
        operator.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def make_pod(cluster, name: str, script: str) -> None:
    container = {"name": "trainer", "image": IMAGE, "command": ["sh", "-c", script]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"finetune.dev/job-name": "logs-kept"}},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))


@pytest.mark.cluster
@pytest.mark.slow
def test_the_log_of_a_deleted_pod_is_kept(cluster, tmp_path):
    folder = tmp_path / "logs"
    with background.pod_logs(cluster, "logs-kept", folder) as follow_new_pods:
        make_pod(cluster, "logs-kept-first", "echo one; exec sleep 100")
        make_pod(cluster, "logs-kept-second", "echo two")
        kept = folder / "logs-kept-first.log"

        def is_followed() -> bool:
            follow_new_pods()
            return kept.exists() and kept.read_text() == "one\n"

        wait_for("the log to be read", is_followed, 30)
        cluster.kubectl("delete", "pod", "logs-kept-first", "--grace-period=1")
        cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/logs-kept-second")
    assert kept.read_text().startswith("one\n")
    assert (folder / "logs-kept-second.log").read_text() == "two\n"


def test_the_summary_names_losses_device_hours_and_every_checkpoint():
    status = {
        "evaluation": {"baseline": 4.4, "last": 3.9},
        "usage": {
            "deviceSeconds": 720,
            "productiveDeviceSeconds": 500,
            "lostDeviceSeconds": 20,
            "overheadDeviceSeconds": 200,
        },
        "checkpoints": [
            {"step": 20, "sizeBytes": 1_600_000_000, "verified": True},
            {"step": 10, "sizeBytes": 1_600_000_000, "verified": False},
        ],
        "output": {"location": "pvc://w/final", "sizeBytes": 270_000_000},
    }
    assert [" ".join(line.split()) for line in result.summary(status)] == [
        "validation loss 4.4000 before, 3.9000 after, nats per trained token",
        "device hours 0.200, in seconds 720: 500 productive, 20 lost, 200 overhead",
        "checkpoint step 20, 1600 MB, verified",
        "checkpoint step 10, 1600 MB, not verified",
        "output pvc://w/final, 270 MB",
    ]


class RecordedOutput:
    """Keeps what `Output` would print."""

    def __init__(self) -> None:
        self.text = ""

    def heading(self, title: str) -> None:
        self.text += f"# {title}\n"

    def line(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "first", "last"),
    [
        (False, "run the demo again", "change the model"),
        (True, "the cluster and the operator are still up", "take the cluster down"),
    ],
)
def test_next_steps_match_whether_the_cluster_is_kept(cluster, tmp_path, keep, first, last):
    output = RecordedOutput()
    result.next_steps(cluster, "smollm2-chat", tmp_path, output, keep=keep)
    lines = output.text.splitlines()
    assert lines[0] == "# What to try next"
    assert lines[1].startswith(first)
    assert [line for line in lines if not line.startswith(" ")][-1].startswith(last)
    assert ("finetune-local down" in output.text) == keep
