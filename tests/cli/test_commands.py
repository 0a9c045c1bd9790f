"""The commands as a user runs them, against a real API server and a real node."""

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finetune_local import layout
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.api.jobs import make_job

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
COMMAND = [sys.executable, "-m", "finetune_cli"]
BEAT = "for i in 1 2 3; do echo line $i; sleep 0.2; done"


@pytest.fixture(scope="module")
def jobs() -> Iterator[Cluster]:
    """A cluster with the definition of jobs and no operator."""
    cluster = Cluster.up(f"test-cli-{os.getpid()}", tied=True)
    cluster.kubectl("apply", "-f", str(TREE / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    yield cluster
    cluster.down()


def create(cluster: Cluster, name: str, **status) -> str:
    """A job with a status; its uid."""
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(make_job(name)))
    write(cluster, name, **status)
    return cluster.kubectl("get", "ftj", name, "-o", "jsonpath={.metadata.uid}")


def write(cluster: Cluster, name: str, **status) -> None:
    patch = json.dumps({"status": status})
    cluster.kubectl("patch", "ftj", name, "--subresource=status", "--type=merge", "-p", patch)


def run(
    cluster: Cluster | None, *arguments: str, kubeconfig: Path | None = None, timeout: float = 60
):
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


def test_an_interrupt_shows_no_traceback_even_while_libraries_are_read(tmp_path):
    (tmp_path / "kubernetes.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*COMMAND, "watch", "x"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


NOT_KUBECONFIGS = {
    "no YAML": "a: [b\n: x",
    "a list": "- a\n- b\n",
    "words": "just words",
    "other types": "clusters: 3\ncontexts: {}\nusers: 1\ncurrent-context: a\n",
    "a number for a server": "clusters: [{name: a, cluster: {server: 5}}]\n"
    "users: [{name: a, user: {token: x}}]\n"
    "contexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\n",
    "binary": b"\xff\xfe\x00",
    "a folder": None,
}


@pytest.mark.parametrize("kind", NOT_KUBECONFIGS)
def test_what_is_no_kubeconfig_is_said_with_its_name(tmp_path, kind):
    path, content = tmp_path / "config", NOT_KUBECONFIGS[kind]
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run(None, "watch", "there", kubeconfig=path)
    assert done.returncode == 1
    assert f"{path} is no kubeconfig" in done.stderr
    assert "set KUBECONFIG or give --kubeconfig" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("current", [None, "", "gone"])
def test_a_context_that_is_named_needs_no_current_one(jobs, tmp_path, current):
    create(jobs, f"by-context-{current or len(str(current))}", phase="Succeeded", message="done")
    content = json.loads(jobs.kubeconfig.read_text())
    (context,) = content["contexts"]
    content |= {"current-context": current}
    if current is None:
        del content["current-context"]
    (tmp_path / "config").write_text(json.dumps(content))
    watch = ("watch", f"by-context-{current or len(str(current))}")
    done = run(None, *watch, "--context", context["name"], kubeconfig=tmp_path / "config")
    assert (done.returncode, done.stderr) == (0, "")
    lost = run(None, *watch, kubeconfig=tmp_path / "config")
    assert lost.returncode == 1
    assert "no cluster is configured" in lost.stderr
    assert "or --context" in lost.stderr
    assert len(lost.stderr.splitlines()) == 1


def test_a_server_that_is_no_kubernetes_is_said(tmp_path):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome</html>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        config = layout.kubeconfig(
            f"http://127.0.0.1:{site.server_port}", Path("/dev/null"), {"token": "x"}
        )
        (tmp_path / "config").write_text(config)
        done = run(None, "watch", "there", kubeconfig=tmp_path / "config")
        site.shutdown()
    assert "does not answer as a Kubernetes API server" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def limited(cluster: Cluster, name: str, *resources: str) -> Path:
    """A kubeconfig that may read these resources and no others."""
    rule = ",".join(resources)
    cluster.kubectl("create", "serviceaccount", name)
    cluster.kubectl("create", "role", name, "--verb=get,list", f"--resource={rule}")
    cluster.kubectl(
        "create", "rolebinding", name, f"--role={name}", f"--serviceaccount=default:{name}"
    )
    return cluster.user_kubeconfig("default", name)


def test_without_the_right_to_list_events_a_job_is_shown_without_them(jobs):
    create(jobs, "eventless", phase="Running", message="going")
    config = limited(jobs, "no-events", "finetunejobs.finetune.dev")
    env = os.environ | {"KUBECONFIG": str(config)}
    process = subprocess.Popen(
        [*COMMAND, "watch", "eventless"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Running: going" in process.stdout.readline()
    time.sleep(2.5)  # several looks
    write(jobs, "eventless", phase="Succeeded", message="done")
    _, words = process.communicate(timeout=20)
    assert process.returncode == 0
    assert len(words.splitlines()) == 1
    assert "cannot list resource" in words
    assert "going on without events" in words


def test_rights_that_end_while_a_job_is_watched_are_said(jobs):
    create(jobs, "revoked", phase="Running", message="going")
    config = limited(jobs, "revoked", "finetunejobs.finetune.dev", "events")
    env = os.environ | {"KUBECONFIG": str(config)}

    def end_of_watch(*command: str) -> str:
        process = subprocess.Popen(
            [*COMMAND, "watch", "revoked"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "Running: going" in process.stdout.readline()
        jobs.kubectl(*command)
        _, words = process.communicate(timeout=30)
        assert process.returncode == 1
        assert len(words.splitlines()) == 1
        assert "deleted while" not in words
        return words

    binding = json.loads(jobs.kubectl("get", "rolebinding", "revoked", "-o", "json"))
    words = end_of_watch("delete", "rolebinding", "revoked")
    assert "not permitted in namespace default" in words
    for field in ("resourceVersion", "uid", "creationTimestamp"):
        del binding["metadata"][field]
    jobs.kubectl("create", "-f", "-", stdin=json.dumps(binding))
    # The API server refuses the token of an account that is gone, as it does an expired one.
    words = end_of_watch("delete", "serviceaccount", "revoked")
    assert "does not accept these credentials; log in again" in words


def test_an_event_without_a_last_timestamp_is_shown(jobs):
    uid = create(jobs, "odd", phase="Running")
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "odd.1"},
        "eventTime": "2026-01-01T00:00:30.123456Z",
        "type": "Normal",
        "reason": "Odd",
        "action": "Testing",
        "note": "written by a newer client",
        "reportingController": "test",
        "reportingInstance": "test",
        "regarding": {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "namespace": "default",
            "name": "odd",
            "uid": uid,
        },
    }
    jobs.kubectl("create", "-f", "-", stdin=json.dumps(event))
    write(jobs, "odd", phase="Failed", reason="Why")
    done = run(jobs, "watch", "odd")
    assert "00:00:30 Odd: written by a newer client" in done.stdout
    assert done.stderr == ""


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
