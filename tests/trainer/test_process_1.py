"""The supervisor as process 1 of a PID namespace, which is stopped at any moment of its start.

The kernel drops signals for which process 1 has no handler.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_operator.plan import pods
from tests.operator.worlds import committed
from tests.trainer.test_stop_signal import environment

_UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--mount-proc", "--fork"]
_COMMAND = [*_UNSHARE, "--kill-child", sys.executable, "-m", "finetune_trainer"]
_PERIODS = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 1.28)  # s between exec and the stop
_ENOUGH = 20.0  # s; the pod's grace period is 300 s
_TRAINER = pods.worker_pods(committed(), 0, [0])[0]["spec"]["containers"][0]


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    """Skip where the machine refuses namespaces."""
    done = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no PID namespace can be made here: {done.stderr.strip()}")


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """Start worker 1 of a gang whose worker 0 has no address yet; return its process 1, too."""
    place = environment(tmp_path, "127.255.98.7", role="worker", attempt=1)
    env = os.environ | place | {"PET_NODE_RANK": "1"}
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(_COMMAND, env=env, stdout=log, stderr=log) as unshare,
    ):
        yield unshare, _process_1(unshare.pid)
        unshare.kill()


@pytest.mark.slow
@pytest.mark.parametrize("period", _PERIODS)
def test_a_stop_is_obeyed_at_any_moment(
    period: float, started: tuple["subprocess.Popen[bytes]", int], tmp_path: Path
) -> None:
    unshare, process_1 = started
    time.sleep(period)
    _stop_as_kubelet(process_1)
    assert unshare.wait(_ENOUGH) == 75, (tmp_path / "log").read_text()
    assert '"Stopped"' in (tmp_path / "result.json").read_text()


def _process_1(parent: int) -> int:
    """Wait until unshare has a child that runs its own program, and return the child's id."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    deadline = time.monotonic() + _ENOUGH
    while time.monotonic() < deadline:
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().startswith("python"):
                return int(child)
    raise AssertionError("unshare started nothing")


def _stop_as_kubelet(process_1: int) -> None:
    """Run the hook of a worker's pod in its container, if it has one, and send SIGTERM."""
    if hook := _TRAINER.get("lifecycle", {}).get("preStop"):
        enter = ["nsenter", "--target", str(process_1), "--user", "--preserve-credentials"]
        command = [*enter, "--mount", "--pid", *hook["exec"]["command"]]
        subprocess.run(command, check=True, timeout=_ENOUGH)
    os.kill(process_1, signal.SIGTERM)
