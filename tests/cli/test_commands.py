"""The commands, run as a user runs them, with a real API server and a real node."""

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
from finetune_local.cluster import IMAGE, Cluster
from tests.api.jobs import make_job

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
COMMAND = [sys.executable, "-m", "finetune_cli"]
THREE_LINES = "for i in 1 2 3; do echo line $i; sleep 0.2; done"


@pytest.fixture(scope="module")
def jobs() -> Iterator[Cluster]:
    """A cluster with the CustomResourceDefinition but without the operator."""
    cluster = Cluster.up(f"test-cli-{os.getpid()}", tied=True)
    cluster.kubectl("apply", "-f", str(TREE / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    yield cluster
    cluster.down()


def create(cluster: Cluster, name: str, **status) -> str:
    """Create a job with a status; return its uid."""
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


def start(kubeconfig: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start a command whose output the test reads while it runs."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=os.environ | {"KUBECONFIG": str(kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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
        "image": IMAGE,
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
    process = start(jobs.kubeconfig, "watch", "watched")
    assert "Running / Training: step 1 of 9" in process.stdout.readline()
    output = {"location": "pvc://w/final", "sizeBytes": 5_000_000, "verified": True}
    write(jobs, "watched", phase="Succeeded", message="done", output=output)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "default/watched Succeeded" in rest
    assert "pvc://w/final (5 MB, verified)" in rest
    assert "\x1b" not in rest


def test_watch_on_a_terminal_shows_the_job_and_ends(jobs):
    create(jobs, "drawn", phase="Failed", reason="BadData", message="line 17")
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["KUBECONFIG"] = str(jobs.kubeconfig)
        os.execv(sys.executable, [*COMMAND, "watch", "drawn"])
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux returns EIO when the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(terminal)
    _, code = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(code) == 1
    assert b"default/drawn Failed" in shown
    assert b"BadData" in shown


def test_a_job_deleted_while_it_is_watched_is_an_error(jobs):
    create(jobs, "vanishing", phase="Running", message="going")
    process = start(jobs.kubeconfig, "watch", "vanishing")
    process.stdout.readline()
    jobs.kubectl("delete", "ftj", "vanishing")
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "was deleted while it was watched" in error


def test_an_interrupt_during_imports_shows_no_traceback(tmp_path):
    (tmp_path / "kubernetes.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*COMMAND, "watch", "x"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


NOT_KUBECONFIGS = {
    "not YAML": "a: [b\n: x",
    "a list": "- a\n- b\n",
    "a text": "just a text",
    "other types": "clusters: 3\ncontexts: {}\nusers: 1\ncurrent-context: a\n",
    "a number for a server": "clusters: [{name: a, cluster: {server: 5}}]\n"
    "users: [{name: a, user: {token: x}}]\n"
    "contexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\n",
    "binary": b"\xff\xfe\x00",
    "a folder": None,
}


@pytest.mark.parametrize("kind", NOT_KUBECONFIGS)
def test_an_error_names_a_file_that_is_not_a_kubeconfig(tmp_path, kind):
    path, content = tmp_path / "config", NOT_KUBECONFIGS[kind]
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run(None, "watch", "there", kubeconfig=path)
    assert done.returncode == 1
    assert f"{path} is not a valid kubeconfig" in done.stderr
    assert "set KUBECONFIG or use --kubeconfig" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("current", [None, "", "gone"])
def test_a_given_context_needs_no_current_context(jobs, tmp_path, current):
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


def test_a_server_that_is_not_kubernetes_is_reported(tmp_path):
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
    assert "is not a Kubernetes API server" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def limited(cluster: Cluster, name: str, *resources: str) -> Path:
    """Return a kubeconfig that may read only these resources."""
    rule = ",".join(resources)
    cluster.kubectl("create", "serviceaccount", name)
    cluster.kubectl("create", "role", name, "--verb=get,list", f"--resource={rule}")
    cluster.kubectl(
        "create", "rolebinding", name, f"--role={name}", f"--serviceaccount=default:{name}"
    )
    return cluster.user_kubeconfig("default", name)


def test_without_permission_to_list_events_a_job_is_shown_without_events(jobs):
    create(jobs, "eventless", phase="Running", message="going")
    config = limited(jobs, "no-events", "finetunejobs.finetune.dev")
    process = start(config, "watch", "eventless")
    assert "Running: going" in process.stdout.readline()
    time.sleep(2.5)  # several polls
    write(jobs, "eventless", phase="Succeeded", message="done")
    _, error = process.communicate(timeout=20)
    assert process.returncode == 0
    assert len(error.splitlines()) == 1
    assert "cannot list resource" in error
    assert "continuing without events" in error


def test_permissions_revoked_while_a_job_is_watched_are_reported(jobs):
    create(jobs, "revoked", phase="Running", message="going")
    config = limited(jobs, "revoked", "finetunejobs.finetune.dev", "events")

    def end_of_watch(*command: str) -> str:
        process = start(config, "watch", "revoked")
        assert "Running: going" in process.stdout.readline()
        jobs.kubectl(*command)
        _, error = process.communicate(timeout=30)
        assert process.returncode == 1
        assert len(error.splitlines()) == 1
        assert "deleted while" not in error
        return error

    binding = json.loads(jobs.kubectl("get", "rolebinding", "revoked", "-o", "json"))
    error = end_of_watch("delete", "rolebinding", "revoked")
    assert "not permitted in namespace default" in error
    for field in ("resourceVersion", "uid", "creationTimestamp"):
        del binding["metadata"][field]
    jobs.kubectl("create", "-f", "-", stdin=json.dumps(binding))
    # The API server refuses the token of a deleted account, as it refuses an expired one.
    error = end_of_watch("delete", "serviceaccount", "revoked")
    assert "does not accept these credentials; log in again" in error


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


def test_errors_are_one_line_without_traceback(jobs, tmp_path):
    create(jobs, "there")
    missing = run(jobs, "watch", "nowhere")
    assert missing.returncode == 1
    assert "no FineTuneJob 'nowhere' in namespace default" in missing.stderr
    assert "there" in missing.stderr
    unprivileged = jobs.user_kubeconfig("default", "default")
    refused = run(jobs, "watch", "there", kubeconfig=unprivileged)
    assert "not permitted in namespace default" in refused.stderr
    unreachable = json.loads(jobs.kubeconfig.read_text())
    unreachable["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "unreachable.conf").write_text(json.dumps(unreachable))
    silent = run(jobs, "watch", "there", kubeconfig=tmp_path / "unreachable.conf")
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
    make_pod(jobs, "logged-2-0", uid, 2, THREE_LINES)
    jobs.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/logged-1-0")
    followed = run(jobs, "logs", "logged", "-f", "--attempt", "2")
    assert followed.stdout == "line 1\nline 2\nline 3\n"
    assert run(jobs, "logs", "logged", "--attempt", "1").stdout == "first attempt\n"
    assert run(jobs, "logs", "logged", "--tail", "1").stdout == "line 3\n"


def test_following_continues_with_the_next_attempt(jobs):
    uid = create(jobs, "follow", attempt=1, workers={"desired": 1}, phase="Running")
    make_pod(jobs, "follow-1-0", uid, 1, "echo one; exit 1")
    process = start(jobs.kubeconfig, "logs", "follow", "-f")
    assert process.stdout.readline() == "one\n"
    make_pod(jobs, "follow-2-0", uid, 2, "echo two")
    write(jobs, "follow", attempt=2)
    assert process.stdout.readline() == "two\n"
    write(jobs, "follow", phase="Succeeded")
    process.communicate(timeout=20)
    assert process.returncode == 0
