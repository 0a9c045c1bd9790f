"""What containers see, how they end, and their logs and termination messages."""

import os
import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from finetune_local.cluster import ClusterError
from finetune_local.node.log_reader import Reader
from finetune_local.node.shim import LogWriter
from tests.installed import wait_for
from tests.local.pods import (
    container,
    create,
    ended,
    exits,
    followed,
    logs,
    pod,
    remove_finalizer,
    run,
    with_finalizer,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_the_service_account_token_is_mounted_without_changing_the_machine(cluster):
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    existed = Path(folder).exists()
    script = f"cat {folder}/namespace; echo; wc -c < {folder}/token; ls -d /run/* | wc -l"
    space, token, rest = run(cluster, pod("token", container(script))).splitlines()
    assert (space, int(token) > 100) == ("default", True)
    # The other entries of the folder above the mount point are still visible.
    assert int(rest) >= len([p for p in Path("/run").iterdir() if not p.name.startswith(".")])
    assert Path(folder).exists() == existed


def test_a_killed_container_ends_with_137_and_a_complete_log(cluster):
    script = "trap 'echo no' TERM; echo up; while true; do sleep 0.1; done"
    create(
        cluster, with_finalizer(pod("stubborn", container(script), terminationGracePeriodSeconds=1))
    )
    wait_for("the pod to run", lambda: "up" in logs(cluster, "stubborn"))
    with followed(cluster, "stubborn", "up") as rest:
        cluster.kubectl("delete", "pod", "stubborn", "--wait=false")
        assert exits(ended(cluster, "stubborn"))["main"]["exitCode"] == 137
        assert rest() == "no\n"
    remove_finalizer(cluster, "stubborn")


def test_a_command_that_does_not_exist_is_a_start_error(cluster):
    wrong = container("") | {"command": ["/no/such/program"]}
    create(cluster, pod("wrong-command", wrong))
    end = exits(ended(cluster, "wrong-command"))["main"]
    assert (end["exitCode"], end["reason"]) == (128, "StartError")
    assert "/no/such/program" in end["message"]


def test_the_termination_message_comes_from_the_file_or_the_log(cluster):
    fall_back = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    create(
        cluster,
        pod(
            "messages",
            container("echo log; printf written > /var/log/new/message", "file")
            | {"terminationMessagePath": "/var/log/new/message"},
            container("for i in $(seq 200); do echo line $i; done; exit 3", "logs") | fall_back,
            container("echo fine", "fine") | fall_back,
        ),
    )
    ends = exits(ended(cluster, "messages"))
    assert ends["file"]["message"] == "written"
    assert ends["logs"]["message"].splitlines() == [f"line {i}" for i in range(121, 201)]
    assert "message" not in ends["fine"]
    assert not Path("/var/log/new").exists()


def test_init_containers_run_in_order_and_as_the_given_user(cluster):
    volumes = [{"name": "v", "emptyDir": {}}]
    mounts = [{"name": "v", "mountPath": "/v"}]
    first = container("sleep 0.5; echo first >> /v/order", "first", volumeMounts=mounts)
    second = container("echo second >> /v/order", "second", volumeMounts=mounts)
    item = pod(
        "ordered",
        container("cat /v/order; id -u; id -g", volumeMounts=mounts),
        initContainers=[first, second],
        volumes=volumes,
        securityContext={"runAsUser": 1234, "runAsGroup": 4321, "runAsNonRoot": True},
    )
    assert run(cluster, item).split() == ["first", "second", "1234", "4321"]


def test_options_of_kubectl_logs(cluster):
    script = "echo early; sleep 2; echo late; printf 'no end'"
    create(cluster, pod("clock", container(script)))
    ended(cluster, "clock")
    complete = cluster.kubectl("logs", "clock", "--timestamps").splitlines()
    times = [datetime.fromisoformat(line.split()[0][:26] + "+00:00") for line in complete]
    assert [line.split(" ", 1)[1] for line in complete] == ["early", "late", "no end"]
    assert 1.5 < (times[1] - times[0]).total_seconds() < 10
    middle = (times[0] + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert cluster.kubectl("logs", "clock", f"--since-time={middle}") == "late\nno end"
    assert cluster.kubectl("logs", "clock", "--since=1h", "--tail=1") == "no end"
    assert cluster.kubectl("logs", "clock", "--limit-bytes=3") == "ear"
    with pytest.raises(ClusterError, match="previous"):
        cluster.kubectl("logs", "clock", "--previous")


def test_the_log_reproduces_long_lines_and_arbitrary_bytes(tmp_path):
    written = b"a" * 50_000 + b"\n\n" + bytes(range(256)) + b"\n" + b"b" * 16_384 + b"\nrest"
    source, end = os.pipe()
    os.set_blocking(end, False)
    with LogWriter(tmp_path / "log") as log:
        for start in range(0, len(written), 9_999):
            os.write(end, written[start : start + 9_999])
            log.copy(source)
    os.close(source)
    os.close(end)
    entries = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    plain, timed = Reader(), Reader(timestamps=True)
    raw = [entry for entry in re.split(rb"(?<=\n)(?=\d{4}-)", b"".join(entries)) if entry]
    assert b"".join(map(plain.text, raw)) == written
    assert b"".join(map(timed.text, raw)).count(b"Z ") == 6
