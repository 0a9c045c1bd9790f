"""What runs in a container, how it ends, and what is told of it."""

from pathlib import Path

import pytest

from tests.installed import wait_for
from tests.local.pods import container, create, ended, exits, followed, keep, let_go, logs, pod, run

pytestmark = pytest.mark.cluster


def test_the_account_token_is_mounted_and_the_machine_is_left_alone(cluster):
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    existed = Path(place).exists()
    script = f"cat {place}/namespace; echo; wc -c < {place}/token; ls -d /run/* | wc -l"
    space, token, rest = run(cluster, pod("token", container(script))).splitlines()
    assert (space, int(token) > 100) == ("default", True)
    # The rest of the folder that was made anew is still there.
    assert int(rest) >= len([p for p in Path("/run").iterdir() if not p.name.startswith(".")])
    assert Path(place).exists() == existed


def test_a_container_that_is_killed_ends_with_137_and_its_log_is_its_own(cluster):
    script = "trap 'echo no' TERM; echo up; while true; do sleep 0.1; done"
    create(cluster, keep(pod("stubborn", container(script), terminationGracePeriodSeconds=1)))
    wait_for("it runs", lambda: "up" in logs(cluster, "stubborn"))
    with followed(cluster, "stubborn", "up") as rest:
        cluster.kubectl("delete", "pod", "stubborn", "--wait=false")
        assert exits(ended(cluster, "stubborn"))["main"]["exitCode"] == 137
        assert rest() == "no\n"
    let_go(cluster, "stubborn")


def test_a_command_that_does_not_exist_never_began(cluster):
    wrong = container("") | {"command": ["/no/such/program"]}
    create(cluster, pod("wrong-command", wrong))
    end = exits(ended(cluster, "wrong-command"))["main"]
    assert (end["exitCode"], end["reason"]) == (128, "StartError")
    assert "/no/such/program" in end["message"]
