"""What the demo says when it cannot go on, and what it leaves; the whole of it is `make demo`."""

import json
import os
import signal
import subprocess
import sys

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import IMAGE
from finetune_local.demo import background, result
from finetune_local.demo.teller import DemoError
from tests.installed import wait_for
from tests.namespace import NO_NAMESPACES, run_where, small_disk

DEMO = [sys.executable, "-m", "finetune_local", "demo"]


def refused(before: str) -> str:
    """What the demo says in a namespace of its own, after a shell command."""
    done = run_where(before, *DEMO)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "PyPI" not in done.stdout, "it had begun"
    return done.stderr


def test_too_little_disk_is_said_before_anything_is_made(tmp_path):
    # build/ itself is left alone: another demo may be running there.
    build = TREE / "build"
    build.mkdir(exist_ok=True)
    words = refused(small_disk(build))
    assert words.startswith("demo: 0.1 GB of disk are free, 6.0 GB are needed: demo 6.0 GB in")


def test_refused_namespaces_are_said_before_anything_is_made():
    words = refused(NO_NAMESPACES)
    assert words.startswith("demo: the kernel refuses user namespaces")
    assert "sysctl -w" in words


def start(script: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(["sh", "-c", script])


def test_an_operator_that_dies_ends_the_watch_with_the_end_of_its_log(tmp_path):
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
    assert lines[0] == f"the operator ended with 3; {log} says:"
    assert lines[-1] == "forbidden: cannot list finetunejobs"
    assert len(lines) < 20


@pytest.mark.slow
def test_a_watch_that_ends_is_the_end_whatever_the_operator_does(tmp_path):
    with start("sleep 100") as operator:
        code = background.watch(
            ["sh", "-c", "exit 7"], dict(os.environ), operator, tmp_path / "log", lambda: None
        )
        operator.kill()
    assert code == 7


def test_an_interrupted_demo_leaves_no_watch_behind(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    pid = tmp_path / "pid"

    def once_it_runs() -> None:
        wait_for("the watch runs", lambda: pid.exists() and pid.read_text().strip(), 10)
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
def test_the_log_of_a_pod_that_is_deleted_is_kept(cluster, tmp_path):
    folder = tmp_path / "logs"
    with background.pod_logs(cluster, "logs-kept", folder) as look:
        make_pod(cluster, "logs-kept-first", "echo one; exec sleep 100")
        make_pod(cluster, "logs-kept-second", "echo two")
        kept = folder / "logs-kept-first.log"

        def seen() -> bool:
            look()
            return kept.exists() and kept.read_text() == "one\n"

        wait_for("the log is read", seen, 30)
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


class Listener:
    """Hears what a teller would say."""

    def __init__(self) -> None:
        self.text = ""

    def step(self, title: str) -> None:
        self.text += f"# {title}\n"

    def say(self, text: str) -> None:
        self.text += f"{text}\n"


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "first", "last"),
    [
        (False, "bring the cluster up again", "change what is trained"),
        (True, "the cluster is still up", "end it"),
    ],
)
def test_there_is_something_to_try_next(cluster, tmp_path, keep, first, last):
    heard = Listener()
    result.next_steps(cluster, "smollm2-chat", tmp_path, heard, keep=keep)
    lines = heard.text.splitlines()
    assert lines[0] == "# What to try next"
    assert lines[1].startswith(first)
    assert [line for line in lines if not line.startswith(" ")][-1].startswith(last)
    assert ("finetune-local down" in heard.text) == keep
