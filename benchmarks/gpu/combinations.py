"""Trains a small model from files at every ZeRO stage and offload: `... combinations SETTINGS`.

What the trainer does with files, slices, offloaded weights and checkpoints differs on a GPU from
what tests on a CPU can see. Each combination has the losses of the first one, up to rounding.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.gpu.shapes import SHAPES, make_model_on
from benchmarks.gpu.train import make_plan

from finetune_api.spec import Training
from finetune_trainer.checkpoint.fragments import Snapshot, mismatches
from finetune_trainer.common.errors import one_line
from finetune_trainer.data.order import Sequence
from finetune_trainer.data.prepared import Rows
from finetune_trainer.model import loading
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.kernels import Kernels
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.training import rendezvous
from finetune_trainer.training.place import Place
from finetune_trainer.training.step import RunState, Stepper

_ALL = (
    (2, "None", "FP32"),
    (1, "None", "FP32"),
    (3, "None", "FP32"),
    (2, "Optimizer", "FP32"),
    (3, "Optimizer", "FP32"),
    (3, "OptimizerAndParameters", "FP32"),
    (3, "None", "BF16"),
)
_STEPS = 2
_TOLERANCE = 0.02  # nats; stages and devices add in other orders


def main() -> None:
    settings = json.loads(sys.argv[1])
    place = Place.from_environment()
    device = rendezvous.join(place, timedelta(minutes=5))
    ranks = Ranks.of(device, dist.new_group(backend="gloo"))
    folder = Path(settings["folder"])
    if place.rank == 0:
        shape = SHAPES[settings["shape"]]
        make_model_on(shape, torch.device("cpu"), "sdpa").save_pretrained(folder)
    dist.barrier(ranks.control)
    found: dict[str, str | None] = {}
    expected: float | None = None
    for stage, offload, moments in _ALL:
        name = f"stage {stage}, offload {offload}, moments {moments}"
        try:
            loss, problem = train(settings, ranks, stage, offload, moments)
        except Exception as error:  # what fails is what this part is to find
            found[name] = f"{type(error).__name__}: {one_line(error)}"
        else:
            expected = loss if expected is None else expected
            differs = abs(loss - expected) > _TOLERANCE
            found[name] = f"its loss is {loss:.4f}, not {expected:.4f}" if differs else problem
        if place.rank == 0:
            Path(settings["result"]).write_text(json.dumps({"combinations": found}))
    for name, text in found.items():
        print(f"{name}: {text or 'fine'}", flush=True)
    os._exit(int(any(found.values())))


def train(
    settings: dict[str, Any], ranks: Ranks, stage: int, offload: str, moments: str
) -> tuple[float, str | None]:
    """Return the loss of the last step, and what is wrong."""
    shape = SHAPES[settings["shape"]]
    training = Training.model_validate(
        {"sequenceLength": shape.row, "seed": 1, "optimizer": {"momentPrecision": moments}}
    )
    plan = make_plan(settings | {"stage": stage, "steps": _STEPS}, ranks.world)
    plan = plan.replace(offload=offload)
    kernels = Kernels.passed(json.loads(Path(settings["kernels"]).read_text()))
    model = loading.load(Path(settings["folder"]), training, plan, lambda: None)
    engine = Engine(model, training, plan, kernels)
    rows = Rows(Path(settings["rows"]), "train")
    stepper = Stepper(engine, ranks, rows, Sequence((len(rows),), 1), training, plan)
    state, loss = RunState(), torch.zeros(())
    for _ in range(_STEPS):
        result = stepper.take(state)
        state, loss = result.state, result.loss
    stepper.verify_replicas()
    Snapshot(engine, ranks).take()
    dist.all_reduce(loss)
    wrong = mismatches(engine)
    return float(loss), f"master weights differ from weights: {wrong[0]}" if wrong else None


if __name__ == "__main__":
    main()
