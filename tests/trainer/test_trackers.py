"""The curves of real, interrupted jobs in real trackers: one run for each job."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api.run import RunConfig
from finetune_local.ports import free_port
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.tracking import run_log, trackers
from tests.installed import wait_for
from tests.trainer import gang, weights
from tests.trainer.conftest import MakeJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ALL_STEPS = list(range(1, gang.STEPS + 1))
EVALUATED = list(range(0, gang.STEPS + 1, gang.INTERVAL))  # with every checkpoint


def lines(job: gang.Job, epoch: int) -> list[dict[str, Any]]:
    text = (job.storage / "log" / f"{epoch}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(job: gang.Job) -> dict[int, float]:
    """Return the training loss of each step, as the newest log records it."""
    paths = weights.paths_of(job)
    found = {step: run_log.train_loss(paths, step) for step in ALL_STEPS}
    return {step: loss for step, loss in found.items() if loss is not None}


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/runs.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    # MLflow would otherwise start seven processes for evaluations of language models.
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
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


class MLflow:
    """A client of the REST API of MLflow."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/api/2.0/mlflow/"

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        try:
            name = urllib.parse.quote(experiment)
            found = self._ask(f"experiments/get-by-name?experiment_name={name}")["experiment"]
        except urllib.error.HTTPError:
            return []  # no attempt has created it yet
        runs: list[dict[str, Any]] = self._ask(
            "runs/search", experiment_ids=[found["experiment_id"]]
        ).get("runs", [])
        return runs

    def history(self, run: dict[str, Any], metric: str) -> dict[int, list[float]]:
        name = urllib.parse.quote(metric, safe="")
        query = f"metrics/get-history?run_id={run['info']['run_id']}&metric_key={name}"
        found: dict[int, list[float]] = {}
        for entry in self._ask(query).get("metrics", []):
            found.setdefault(entry.get("step", 0), []).append(entry["value"])
        return found

    def _ask(self, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if body else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def tracked(make_job: MakeJob, mlflow_server: str) -> Iterator[gang.Job]:
    """Run a job with all trackers in two attempts. The first is killed after a checkpoint.

    Rank 0 is stopped until MLflow has received a step after that checkpoint, so that the second
    attempt repeats at least one step.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        patch.setenv("WANDB_MODE", "offline")
        job, plan, server = make_job(), gang.make_plan(), MLflow(mlflow_server)
        job.config["tracking"] = [
            {"type": "MLflow", "project": "cats"},
            {"type": "WandB"},
            {"type": "TensorBoard"},
        ]

        def arrived() -> bool:
            return any(5 in server.history(run, "train/loss") for run in server.runs("cats"))

        job.start(plan)
        job.wait_for_text("saved a checkpoint of step 4")
        os.kill(job.pods[1].ranks[0], signal.SIGSTOP)  # rank 0 waits, but its tracker threads go on
        wait_for("MLflow has the first steps", arrived, 180)
        for pod in job.pods:
            pod.process.kill()
        job.wait(60)
        reached = max(line["step"] for line in lines(job, 1) if line["part"] == "train")
        job.start(plan, highest_step=reached)
        assert job.wait() == [0, 0], job.log
        assert "resumed from checkpoint step-" in job.log
        assert "training goes on" not in job.log  # no tracker had a problem
        assert mlflow_server not in job.log  # the address can contain a password
        yield job


def test_tensorboard_reads_one_curve_over_two_attempts(tracked: gang.Job) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (tracked.storage / "tensorboard").iterdir()
    assert folder.name == "job"
    reader = EventAccumulator(str(folder))
    reader.Reload()
    train = reader.Scalars("train/loss")
    assert [event.step for event in train] == ALL_STEPS  # no step twice
    assert [event.value for event in train] == pytest.approx(list(losses(tracked).values()))
    assert {"train/learningRate", "train/gradNorm", "train/tokensPerSecond"} <= set(
        reader.Tags()["scalars"]
    )
    validation = {event.step: event.value for event in reader.Scalars("validation/loss")}
    measured = tracked.pods[0].result.evaluation
    assert measured is not None
    assert sorted(validation) == EVALUATED
    assert validation[0] == pytest.approx(measured.baseline)
    assert validation[gang.STEPS] == pytest.approx(measured.last)


def test_every_step_of_every_attempt_is_in_the_log_on_storage(tracked: gang.Job) -> None:
    first, second = lines(tracked, 1), lines(tracked, 2)
    steps = [[line["step"] for line in part if line["part"] == "train"] for part in (first, second)]
    assert steps[0] == list(range(1, steps[0][-1] + 1))
    assert steps[1] == list(range(steps[1][0], gang.STEPS + 1))
    assert 5 <= steps[1][0] <= steps[0][-1] + 1
    measured = [line["step"] for line in first if line["part"] == "validation"]
    assert measured == EVALUATED[: len(measured)]
    step = second[0]
    assert step.keys() == {
        "time", "step", "part", "loss", "learningRate", "gradNorm", "epoch", "tokensSeen",
        "tokensPerSecond", "skippedSteps", "seconds",
    }  # fmt: skip
    assert step["seconds"] > 0
    assert second[-1]["part"] == "validation"
    assert second[-1]["perplexity"] > 1
    loss = f"| training, at this step | {losses(tracked)[gang.STEPS]:.4f} |"
    assert loss in (tracked.storage / "final/README.md").read_text()


def test_mlflow_holds_one_run_over_two_attempts(tracked: gang.Job, mlflow_server: str) -> None:
    server = MLflow(mlflow_server)
    (run,) = server.runs("cats")
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert tags["finetune.dev/job-uid"] == "uid-1"
    assert run["info"]["run_name"] == "job"
    params = {entry["key"]: entry["value"] for entry in run["data"]["params"]}
    assert params["globalBatchSize"] == "4"
    assert params["optimizer.beta2"] == "0.999"
    history = server.history(run, "train/loss")
    assert history == {step: [pytest.approx(loss)] for step, loss in losses(tracked).items()}
    assert sorted(history) == ALL_STEPS
    assert sorted(server.history(run, "validation/loss")) == EVALUATED


def test_weights_and_biases_stores_its_offline_runs_under_one_id(tracked: gang.Job) -> None:
    folders = sorted((tracked.storage / "wandb").glob("offline-run-*"))
    assert folders
    for folder in folders:
        assert folder.name.endswith("-uid-1")
    assert (folders[-1] / "run-uid-1.wandb").stat().st_size > 1000


def test_trackers_that_cannot_be_used_neither_delay_nor_fail_the_job(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has no key, one calls a server that never answers, one finds a file in its place."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    job = make_job()
    job.config["tracking"] = [{"type": "WandB"}, {"type": "MLflow"}, {"type": "TensorBoard"}]
    job.storage.mkdir(parents=True, exist_ok=True)
    for name in ("log", "tensorboard"):
        (job.storage / name).write_text("in the way")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)  # the kernel accepts connections, but no process reads from them
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        job.start(gang.make_plan())
        assert job.wait() == [0, 0], job.log
    for message in (
        "tracker WandB is not used in this attempt: TrackerError (WANDB_API_KEY is not set; ",
        "tracker MLflow did not finish in time; its last points are lost; training goes on",
        "tracker TensorBoard is not used in this attempt: ",
        "the log of steps is not used in this attempt: ",
    ):
        assert job.log.count(message) == 1
    assert "Traceback" not in job.log
    assert (
        "| training, at this step | not measured |" in (job.storage / "final/README.md").read_text()
    )


def test_a_tracker_without_an_address_reports_where_to_set_it(
    prepared_claim: gang.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = prepared_claim.config | {"role": "worker", "mounts": {"w": str(prepared_claim.claim)}}
    config = RunConfig.model_validate(values | {"tracking": [{"type": "MLflow"}]})
    run = trackers.TrackedRun.of(config)
    (sink,) = trackers.of(config.tracking, run, RunPaths.of(config).storage)
    with pytest.raises(trackers.TrackerError, match="put it into the Secret that secretRef names"):
        sink.start(1)
