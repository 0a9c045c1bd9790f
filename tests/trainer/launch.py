"""Runs many cases in one launch of two ranks: `python -m tests.trainer.launch FOLDER`, once a rank.

Starting a gang takes seconds, training a tiny model does not. The ranks read `cases.json`, a list
of {"name", "config", ...}, and rank 0 writes the result of each case to `<name>.json`.
"""

import json
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.progress import Plan, Progress, Stage
from finetune_api.run import RunConfig
from finetune_api.spec import Training
from finetune_trainer.checkpoint import resume
from finetune_trainer.checkpoint.store import RunStorage
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.model import engine as engine_module
from finetune_trainer.model import loading
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.training import rendezvous
from finetune_trainer.training.attempt import build_loop
from finetune_trainer.training.place import Place
from tests.trainer import resident
from tests.trainer.silent import SilentReporter
from tests.trainer.two_devices import watch_checkpoints

PERSISTENT = 1000  # elements


class Recorder(SilentReporter):
    """Records the steps, and requests a stop when a stage is entered for the n-th time."""

    def __init__(self, stop: StopSignal, stop_in: list[Any] | None) -> None:
        self.steps: list[dict[str, Any]] = []
        self._stop, self._stop_in = stop, stop_in
        self._entered: list[Stage] = []

    def stage(self, stage: Stage) -> None:
        self._entered.append(stage)
        if self._stop_in == [stage, self._entered.count(stage)]:
            self._stop.set()

    def training(self, progress: Progress | None = None, **_: object) -> None:  # type: ignore[override]
        if progress is not None:
            self.steps.append(progress.to_dict())


def train(case: dict[str, Any], device: torch.device, control: Any) -> dict[str, Any]:
    """Run a complete attempt, without supervisor and export."""
    config = RunConfig.model_validate(case["config"])
    plan = config.plan
    assert plan is not None
    paths = RunPaths.of(config)
    model = loading.load(paths.model, config.training, plan, lambda: None)
    engine = Engine(model, config.training, plan)
    if case.get("spoilRank") == dist.get_rank():
        spoil(engine)
    stop = StopSignal()
    # Only the last rank is asked to stop: one is enough.
    recorder = Recorder(stop, case.get("stopIn") if dist.get_rank() else None)
    digest = config.run_digest or ""
    storage = RunStorage(paths, config.job_uid, digest, config.attempt, config.attempt)
    loop = build_loop(config, engine, Ranks.of(device, control), storage, recorder, stop)
    try:
        finished = loop.run(config.highest_step)
    except TrainerError as error:
        return {"code": error.code, "message": str(error)}
    return {
        "finished": finished,
        "steps": recorder.steps,
        "evaluation": loop.evaluator.history.summary().to_dict(),
        "accumulation": str(accumulation_type(engine)),
        "inSlices": [name for name, p in engine.model.named_parameters() if not p.numel()],
    }


def spoil(engine: Engine) -> None:
    """Change a weight of this rank after each step, as a faulty device would."""
    step = engine.step

    def step_and_err(learning_rate: float) -> tuple[Any, bool]:
        result = step(learning_rate)
        with torch.no_grad():
            next(iter(engine.model.parameters())).view(-1)[0].add_(1e-3)
        return result

    engine.step = step_and_err  # type: ignore[method-assign]


def accumulation_type(engine: Engine) -> torch.dtype:
    """Return the dtype in which gradients of micro-batches are summed."""
    optimizer = engine.optimizer
    name = "grad_acc_dtype" if hasattr(optimizer, "grad_acc_dtype") else None
    found: torch.dtype = getattr(optimizer, name or "gradient_accumulation_dtype")
    return found


def choose_checkpoint(case: dict[str, Any], control: Any) -> dict[str, Any]:
    """Return which checkpoint each rank would resume from, and how much of it each rank read."""
    config = RunConfig.model_validate(case["config"])
    advances: list[None] = []
    found = resume.newest_valid(
        RunPaths.of(config), config.run_digest or "", control, lambda: advances.append(None)
    )
    gathered: list[Any] = [None] * dist.get_world_size()
    mine = (found and found[1].step, len(advances))
    dist.all_gather_object(gathered, mine, group=control)
    return {
        "steps": [step for step, _ in gathered],
        "advances": [count for _, count in gathered],
    }


def run(case: dict[str, Any], device: torch.device, control: Any) -> dict[str, Any]:
    """Run one case and return its result."""
    if case.get("onlyChoose"):
        return choose_checkpoint(case, control)
    if case.get("onlyLoad"):
        return resident.load(case, control)
    return train(case, device, control)


def run_cases(folder: Path, cases: list[dict[str, Any]]) -> None:
    """Launch both ranks and wait until they have ended."""
    (folder / "cases.json").write_text(json.dumps(cases))
    place = {
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": f"127.255.97.{1 + os.getpid() % 250}",
    }
    common = {"MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    # Return the memory of freed tensors, as always happens with those of a real model's size.
    common["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
    command = [sys.executable, "-W", "ignore", "-m", "tests.trainer.launch", str(folder)]
    logs = [folder / f"launch-{rank}.log" for rank in range(2)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("wb") as output:
            env = os.environ | place | common | {"RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
    try:
        codes = [process.wait(540) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def keep_slices() -> None:
    """Let ZeRO-3 gather each matrix when it is used, and release it, although it is small.

    By default it keeps all parameters of such small models complete on every rank.
    """
    original = engine_module.configuration

    def configuration(training: Training, plan: Plan, parameters: int) -> dict[str, Any]:
        made = original(training, plan, parameters)
        made["zero_optimization"] |= {
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        }
        return made

    engine_module.configuration = loading.configuration = configuration  # type: ignore[attr-defined]


def main(folder: Path) -> None:
    """Run all cases, one after another."""
    keep_slices()
    watch_checkpoints()
    logging.basicConfig(level=logging.INFO)
    place = Place.from_environment()
    device = rendezvous.join(place, timedelta(minutes=2))
    control = dist.new_group(backend="gloo")
    for case in json.loads((folder / "cases.json").read_text()):
        result = run(case, device, control)
        if place.rank == 0:
            (folder / f"{case['name']}.json").write_text(json.dumps(result))
    dist.barrier(control)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
