"""What a pod reports: its report, its result, and the messages of its children."""

import json
import os
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest

from finetune_api.names import RESULT_MAX_BYTES
from finetune_api.progress import CheckpointRecord
from finetune_api.run import Report, Result
from finetune_operator import reports
from finetune_operator.reports import Target
from finetune_trainer.pod import report_server
from finetune_trainer.pod.processes import Child
from finetune_trainer.pod.state import PodState
from tests.operator.worlds import worker
from tests.trainer.gang import make_job


@pytest.fixture
def state() -> PodState:
    return PodState("uid-1", attempt=3, role="worker", worker_index=0)


def test_a_report_names_its_pod_and_has_a_growing_sequence(state: PodState) -> None:
    first = state.report()
    assert (first.job_uid, first.attempt, first.worker_index) == ("uid-1", 3, 0)
    state.process("rank 0", 0, {"activity": 1, "stage": "Training"})
    state.process("rank 1", 1, {"activity": 5})
    second = state.report()
    assert second.sequence > first.sequence
    assert (second.stage, second.activity) == ("Training", 6)


def test_the_lowest_rank_determines_the_stage(state: PodState) -> None:
    state.process("rank 0", 0, {"activity": 1, "stage": "Training"})
    state.process("rank 1", 1, {"activity": 1, "stage": "Evaluating"})
    assert state.report().stage == "Training"


def test_only_worker_0_reports_the_progress_of_the_run(state: PodState) -> None:
    message = {"activity": 1, "progress": {"step": 1, "totalSteps": 8}}
    state.process("rank 0", 0, message)
    assert state.report().progress is not None
    other = PodState("uid-1", attempt=3, role="worker", worker_index=1)
    other.process("rank 1", 1, message)
    assert other.report().progress is None


def test_the_report_is_served_at_its_path_only(state: PodState) -> None:
    server = report_server.serve("127.255.98.1", 29600, state.report)
    try:
        with urllib.request.urlopen("http://127.255.98.1:29600/v1/report") as response:
            assert response.headers["Content-Type"] == "application/json"
            report = Report.model_validate_json(response.read())
        assert report.job_uid == "uid-1"
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen("http://127.255.98.1:29600/")
        assert error.value.code == 404
        error.value.close()
    finally:
        server.shutdown()
        server.server_close()


async def test_the_operator_reads_a_report_at_an_ipv6_address(state: PodState) -> None:
    server = report_server.serve("::1", 29600, state.report)
    target = Target(("n", "j"), "uid-1", 3, worker(0, ip="::1"))
    try:
        async with reports.open_session() as session:
            found = await reports.fetch(session, worker(0, ip="::1"), target)
        assert found
        assert found.job_uid == "uid-1"
    finally:
        server.shutdown()
        server.server_close()


def make_record(step: int) -> CheckpointRecord:
    return CheckpointRecord(
        step=step,
        location="pvc://w/" + "x" * 290,
        creation_time=datetime.now(UTC),
        size_bytes=1,
        verified=True,
        world_size=2,
    )


MESSAGES = {"ascii": "x" * 5000, "several bytes a letter": "ü😀" * 2500, "quotes": '"\n' * 2500}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
def test_a_result_fits_into_a_termination_message(state: PodState, message: str) -> None:
    state.checkpoints = [make_record(step) for step in range(10, 0, -1)]
    text = state.result("Failed", "Crashed", message).to_termination_message()
    assert len(text.encode()) <= RESULT_MAX_BYTES
    result = Result.model_validate_json(text)
    assert (result.outcome, result.reason) == ("Failed", "Crashed")
    assert result.checkpoints[0].step == 10  # the newest is dropped last
    assert message.startswith(result.message)
    assert result.message


def test_messages_of_a_child_are_received_line_by_line(tmp_path: Path) -> None:
    script = """
        import os
        channel = int(os.environ["FINETUNE_CHANNEL"])
        os.write(channel, b'{"a": 1}\\n{"a')
        os.write(channel, b'": 2}\\n{"a')
        raise SystemExit(7)
    """
    (tmp_path / "child_that_reports.py").write_text(textwrap.dedent(script))
    child = Child("child", None, ["child_that_reports"], {"PYTHONPATH": str(tmp_path)})
    child.process.wait()
    assert child.receive() == [{"a": 1}, {"a": 2}]
    assert child.code() == 7
    child.finish()


def supervise(env: dict[str, str], tmp_path: Path) -> tuple[int, Result, str]:
    """Run the supervisor. Return its exit code, its result and its log."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FINETUNE_", "PET_"))}
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer"],
        env=clean | env | {"FINETUNE_TERMINATION_LOG": str(result)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, Result.model_validate_json(result.read_text()), done.stderr


UNUSABLE = {
    "started by hand": ({}, "FINETUNE_RUN is not set: this program is started by the operator"),
    "no JSON": ({"FINETUNE_RUN": "{"}, "FINETUNE_RUN is not a run configuration"),
    "no position in the gang": ({"FINETUNE_POD_IP": "127.255.98.2"}, "environment: 'PET_NNODES'"),
}


def test_a_result_honours_the_limit_of_a_pod_with_many_containers(tmp_path: Path) -> None:
    config = make_job(tmp_path).config | {"role": "worker", "attempt": 1, "mounts": {}}
    config |= {"resultMaxBytes": 1024, "checkpoints": {"storage": "pvc://w/" + "x" * 240}}
    position = {f"PET_{name}": "1" for name in ("NNODES", "NPROC_PER_NODE", "MASTER_PORT")}
    position |= {"PET_NODE_RANK": "0", "PET_MASTER_ADDR": "x", "FINETUNE_POD_IP": "127.255.98.3"}
    env = position | {"FINETUNE_RUN": json.dumps(config)}
    _, result, _ = supervise(env, tmp_path)
    assert "is not mounted" in result.message
    assert (tmp_path / "result.json").stat().st_size <= 1024


@pytest.mark.parametrize(("env", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_environment_ends_with_a_result(
    env: dict[str, str], message: str, tmp_path: Path
) -> None:
    if "FINETUNE_POD_IP" in env:
        config = make_job(tmp_path).config | {"role": "worker", "attempt": 1, "mounts": {}}
        env = env | {"FINETUNE_RUN": json.dumps(config)}
    code, result, log = supervise(env, tmp_path)
    assert code == 64
    assert (result.outcome, result.reason) == ("Failed", "BadConfiguration")
    assert message in result.message
    assert message in log
    assert "Traceback" not in log
