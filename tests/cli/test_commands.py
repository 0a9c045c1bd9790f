"""The commands as a user runs them, against a real API server and a real node."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.api.jobs import make_job

pytestmark = pytest.mark.cluster
COMMAND = [sys.executable, "-m", "finetune_cli"]
BEAT = "for i in 1 2 3; do echo line $i; sleep 0.2; done"


@pytest.fixture(scope="module")
def jobs(cluster: Cluster) -> Cluster:
    cluster.kubectl("apply", "-f", str(TREE / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    return cluster


def create(cluster: Cluster, name: str, **status) -> str:
    """A job with a status; its uid."""
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(make_job(name)))
    write(cluster, name, **status)
    return cluster.kubectl("get", "ftj", name, "-o", "jsonpath={.metadata.uid}")


def write(cluster: Cluster, name: str, **status) -> None:
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "ftj", name, "--subresource=status", "--type=merge", "-p", patch)


def run(cluster: Cluster, *arguments: str, kubeconfig: Path | None = None, timeout: float = 60):
    env = os.environ | {"KUBECONFIG": str(kubeconfig or cluster.kubeconfig)}
    return subprocess.run(
        [*COMMAND, *arguments], env=env, capture_output=True, text=True, timeout=timeout
    )


def make_pod(cluster: Cluster, name: str, uid: str, attempt: int, script: str) -> None:
    labels = {
        "finetune.dev/job-uid": uid,
        "finetune.dev/role": "worker",
        "finetune.dev/attempt": str(attempt),
        "finetune.dev/worker-index": "0",
    }
    container = {
        "name": "trainer",
        "image": "finetune-trainer:local",
        "command": ["sh", "-c", script],
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))


def test_watch_prints_plain_lines_and_the_result(jobs):
    create(jobs, "watched", phase="Running", stage="Training", message="step 1 of 9")
    env = os.environ | {"KUBECONFIG": str(jobs.kubeconfig)}
    process = subprocess.Popen(
        [*COMMAND, "watch", "watched"], env=env, stdout=subprocess.PIPE, text=True
    )
    assert "Running / Training: step 1 of 9" in process.stdout.readline()
    output = {"location": "pvc://w/final", "sizeBytes": 5_000_000, "verified": True}
    write(jobs, "watched", phase="Succeeded", message="done", output=output)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "default/watched Succeeded" in rest
    assert "pvc://w/final (5 MB, verified)" in rest
    assert "\x1b" not in rest


def test_watch_on_a_terminal_draws_and_ends(jobs):
    create(jobs, "drawn", phase="Failed", reason="BadData", message="line 17")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["KUBECONFIG"] = str(jobs.kubeconfig)
        os.execv(sys.executable, [*COMMAND, "watch", "drawn"])
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux says EIO when the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(terminal)
    _, code = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(code) == 1
    assert b"default/drawn Failed" in shown
    assert b"BadData" in shown


def test_a_job_deleted_while_it_is_watched(jobs):
    create(jobs, "vanishing", phase="Running", message="going")
    env = os.environ | {"KUBECONFIG": str(jobs.kubeconfig)}
    process = subprocess.Popen(
        [*COMMAND, "watch", "vanishing"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    jobs.kubectl("delete", "ftj", "vanishing")
    _, words = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "was deleted while it was watched" in words


def test_errors_are_plain_words(jobs, tmp_path):
    create(jobs, "there")
    missing = run(jobs, "watch", "nowhere")
    assert missing.returncode == 1
    assert "no FineTuneJob 'nowhere' in namespace default" in missing.stderr
    assert "there" in missing.stderr
    nobody = jobs.user_kubeconfig("default", "default")
    refused = run(jobs, "watch", "there", kubeconfig=nobody)
    assert "not permitted in namespace default" in refused.stderr
    away = json.loads(jobs.kubeconfig.read_text())
    away["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "away.conf").write_text(json.dumps(away))
    silent = run(jobs, "watch", "there", kubeconfig=tmp_path / "away.conf")
    assert "https://127.0.0.1:1 does not answer" in silent.stderr
    none = run(jobs, "watch", "there", kubeconfig=tmp_path / "nothing.conf")
    assert "no cluster is configured" in none.stderr
    for done in (missing, refused, silent, none):
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_logs_of_the_newest_attempt_and_of_an_older_one(jobs):
    uid = create(jobs, "logged", attempt=2, workers={"desired": 1}, phase="Running")
    make_pod(jobs, "logged-1-0", uid, 1, "echo first attempt")
    make_pod(jobs, "logged-2-0", uid, 2, BEAT)
    jobs.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/logged-1-0")
    followed = run(jobs, "logs", "logged", "-f", "--attempt", "2")
    assert followed.stdout == "line 1\nline 2\nline 3\n"
    assert run(jobs, "logs", "logged", "--attempt", "1").stdout == "first attempt\n"
    assert run(jobs, "logs", "logged", "--tail", "1").stdout == "line 3\n"


def test_following_goes_on_with_the_next_attempt(jobs):
    uid = create(jobs, "follow", attempt=1, workers={"desired": 1}, phase="Running")
    make_pod(jobs, "follow-1-0", uid, 1, "echo one; exit 1")
    env = os.environ | {"KUBECONFIG": str(jobs.kubeconfig)}
    process = subprocess.Popen(
        [*COMMAND, "logs", "follow", "-f"], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "one\n"
    make_pod(jobs, "follow-2-0", uid, 2, "echo two")
    write(jobs, "follow", attempt=2)
    assert process.stdout.readline() == "two\n"
    write(jobs, "follow", phase="Succeeded")
    process.communicate(timeout=20)
    assert process.returncode == 0
