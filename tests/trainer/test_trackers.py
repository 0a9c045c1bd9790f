"""Curves of real runs, read by the real readers: one run a job, over interrupted attempts."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_trainer import run_log
from tests.installed import free_port
from tests.trainer import gang, weights
from tests.trainer.conftest import MakeJob

pytestmark = pytest.mark.slow


def interrupted(job: gang.Job) -> int:
    """Two attempts; the first is killed after step 3 and so leaves steps that are made again.

    Returns the highest step of the first.
    """
    plan = gang.make_plan()
    job.start(plan)
    job.wait_for_step(3)
    for pod in job.pods:
        pod.process.kill()
    job.wait(60)
    time.sleep(0.5)  # the ranks die with their pods
    first = [line["step"] for line in lines(job, 1) if line["part"] == "train"]
    reached = max(first)
    job.start(plan, highest_step=reached)
    assert job.wait() == [0, 0], job.log
    assert "resumed from checkpoint step-00000002" in job.log
    return reached


def lines(job: gang.Job, epoch: int) -> list[dict[str, Any]]:
    text = (job.storage / "log" / f"{epoch}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(job: gang.Job) -> dict[int, float]:
    """Step -> training loss, as the newest attempt that made it wrote it down."""
    paths = weights.paths_of(job)
    found = {step: run_log.train_loss(paths, step) for step in range(1, 9)}
    return {step: loss for step, loss in found.items() if loss is not None}


def test_tensorboard_reads_one_curve_over_two_attempts(make_job: MakeJob) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = make_job()
    reached = interrupted(job)
    assert reached >= 3
    (folder,) = (job.storage / "tensorboard").iterdir()
    assert folder.name == "job"
    reader = EventAccumulator(str(folder))
    reader.Reload()
    train = reader.Scalars("train/loss")
    assert [event.step for event in train] == list(range(1, 9))  # no step twice, no zigzag
    assert [event.value for event in train] == pytest.approx(list(losses(job).values()))
    assert {"train/learningRate", "train/gradNorm", "train/tokensPerSecond"} <= set(
        reader.Tags()["scalars"]
    )
    validation = {event.step: event.value for event in reader.Scalars("validation/loss")}
    measured = job.pods[0].result.evaluation
    assert measured is not None
    assert validation == {
        0: pytest.approx(measured.baseline),
        8: pytest.approx(measured.last),
    }


def test_every_step_of_every_attempt_is_in_the_log_on_storage(make_job: MakeJob) -> None:
    job = make_job()
    reached = interrupted(job)
    first, second = lines(job, 1), lines(job, 2)
    steps = [[line["step"] for line in part if line["part"] == "train"] for part in (first, second)]
    assert steps == [list(range(1, reached + 1)), list(range(3, 9))]
    assert [line["step"] for line in first if line["part"] == "validation"] == [0]
    step = second[0]
    assert step.keys() == {
        "time", "step", "part", "loss", "learningRate", "gradNorm", "epoch", "tokensSeen",
        "tokensPerSecond", "skippedSteps", "seconds",
    }  # fmt: skip
    assert step["seconds"] > 0
    assert second[-1]["part"] == "validation"
    assert second[-1]["perplexity"] > 1
    assert "| training, at this step |" in (job.storage / "final/README.md").read_text()


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while not _answers(f"{url}/health"):
        assert server.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    yield url
    os.killpg(server.pid, 15)
    server.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_mlflow_holds_one_run_over_two_attempts(
    make_job: MakeJob, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    job = make_job()
    job.config["tracking"] = [{"type": "MLflow", "project": "cats"}]
    interrupted(job)

    def ask(path: str, **body: Any) -> Any:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        url = f"{mlflow_server}/api/2.0/mlflow/{path}"
        request = urllib.request.Request(url, data if body else None, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    experiment = ask("experiments/get-by-name?experiment_name=cats")["experiment"]
    (run,) = ask("runs/search", experiment_ids=[experiment["experiment_id"]])["runs"]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["finetune.dev/job-uid"] == "uid-1"
    assert run["info"]["run_name"] == "job"
    params = {entry["key"]: entry["value"] for entry in run["data"]["params"]}
    assert params["globalBatchSize"] == "4"
    assert params["optimizer.beta2"] == "0.999"
    name = f"metrics/get-history?run_id={run['info']['run_id']}&metric_key=train/loss"
    history = ask(name)["metrics"]
    assert [metric["step"] for metric in history] == list(range(1, 9))
    assert [metric["value"] for metric in history] == pytest.approx(list(losses(job).values()))
    assert not (job.storage / "tensorboard").exists()  # it was not asked for


def test_weights_and_biases_leaves_its_run_on_storage(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = make_job()
    job.config["tracking"] = [{"type": "WandB"}, {"type": "TensorBoard"}]
    job.start(gang.make_plan())
    assert job.wait() == [0, 0], job.log
    (folder,) = (job.storage / "wandb").glob("offline-run-*")
    assert folder.name.endswith("-uid-1")
    (file,) = folder.glob("run-uid-1.wandb")
    assert file.stat().st_size > 1000
    assert (job.storage / "tensorboard").is_dir()
    assert "training goes on" not in job.log


def test_a_tracker_without_its_key_is_said_and_the_job_succeeds(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    job = make_job()
    job.config["tracking"] = [{"type": "WandB"}, {"type": "MLflow"}]
    job.start(gang.make_plan())
    assert job.wait() == [0, 0], job.log
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        assert job.log.count(f"{name} is not set") == 1
    assert "Traceback" not in job.log


def test_a_server_that_never_answers_neither_stalls_nor_fails_the_job(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)  # connections are accepted by the kernel, and nobody reads
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        job = make_job()
        job.config["tracking"] = [{"type": "MLflow"}]
        job.start(gang.make_plan())
        assert job.wait() == [0, 0], job.log
    said = "tracker MLflow does not come to an end; its last points are lost; training goes on"
    assert job.log.count(said) == 1
    assert [line["step"] for line in lines(job, 1) if line["part"] == "train"] == list(range(1, 9))


def test_a_full_disk_under_the_log_fails_no_job(make_job: MakeJob) -> None:
    job = make_job()
    job.storage.mkdir(parents=True, exist_ok=True)
    for name in ("log", "tensorboard"):
        (job.storage / name).write_text("in the way")
    job.start(gang.make_plan())
    assert job.wait() == [0, 0], job.log
    assert "the log of steps is not used in this attempt: " in job.log
    assert "tracker TensorBoard is not used in this attempt: " in job.log
    assert "not measured" in (job.storage / "final/README.md").read_text()
