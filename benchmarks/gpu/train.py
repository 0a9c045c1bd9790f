"""One rank of the trainer in the check: `python -m benchmarks.gpu.train SETTINGS`.

It uses the engine, the steps and the snapshot of the trainer on a model with random weights. Rank 0
writes its figures as soon as it knows them, so that a run that is stopped has shown the first ones.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.gpu.shapes import SHAPES, make_model_on

from finetune_api.memory import DeviceBytes, Setting, device_bytes
from finetune_api.progress import Plan
from finetune_api.spec import Training
from finetune_trainer.checkpoint.fragments import Snapshot
from finetune_trainer.data.order import Sequence
from finetune_trainer.data.prepared import Rows
from finetune_trainer.model import attention, memory_facts
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.kernels import Kernels
from finetune_trainer.model.language_model import LanguageModel
from finetune_trainer.model.ranks import Ranks
from finetune_trainer.training import out_of_memory, rendezvous
from finetune_trainer.training.mfu import Utilisation
from finetune_trainer.training.place import Place
from finetune_trainer.training.step import RunState, Stepper


class Figures:
    """The figures so far, which are written to a file whenever one is added."""

    def __init__(self, file: Path, rank: int) -> None:
        self._file, self._rank = file, rank
        self._known: dict[str, Any] = {}

    def add(self, **figures: Any) -> None:
        self._known |= figures
        if self._rank == 0:
            self._file.write_text(json.dumps(self._known))


def main() -> None:
    settings = json.loads(sys.argv[1])
    place = Place.from_environment()
    figures = Figures(Path(settings["result"]), place.rank)
    device = rendezvous.join(place, timedelta(minutes=5))
    control = dist.new_group(backend="gloo")
    try:
        run(settings, place, Ranks.of(device, control), figures)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        if not out_of_memory.is_out_of_memory(error):
            raise
        figures.add(problem="does not fit into the memory of the device", **memory(device))
    sys.stdout.flush()
    os._exit(0)


def run(settings: dict[str, Any], place: Place, ranks: Ranks, figures: Figures) -> None:
    """Make the engine, take the steps, and copy a checkpoint."""
    shape, device = SHAPES[settings["shape"]], ranks.device
    plan = make_plan(settings, place.world)
    training = Training.model_validate(
        {
            "sequenceLength": shape.row,
            "optimizer": {"momentPrecision": settings["moments"]},
            "seed": 1,
        }
    )
    attention.register()
    kernels = Kernels.passed(json.loads(Path(settings["kernels"]).read_text()))
    began = time.monotonic()
    model = LanguageModel(make_model_on(shape, device, attention.NAME))
    parameters = sum(p.numel() for p in model.parameters())
    figures.add(
        parameters=parameters,
        plannedBytes=planned(parameters, settings, plan, place).total,
        **facts(kernels, settings),
    )
    engine = Engine(model, training, plan, kernels)
    figures.add(engineSeconds=time.monotonic() - began, statesBytes=memory(device)["peakBytes"])
    rows = Rows(Path(settings["rows"]), "train")
    stepper = Stepper(engine, ranks, rows, Sequence((len(rows),), 1), training, plan)
    measure_steps(settings, stepper, rows, model, ranks, figures)
    measure_snapshot(engine, ranks, figures)


def measure_steps(
    settings: dict[str, Any],
    stepper: Stepper,
    rows: Rows,
    model: LanguageModel,
    ranks: Ranks,
    figures: Figures,
) -> None:
    """Take the steps, of which those of the warm-up do not count."""
    state, losses, tokens, needed = RunState(), [], 0, 0.0
    used = Utilisation.known(model.model, rows, ranks.world, ranks.device, bf16=True)
    began = 0.0
    for step in range(settings["steps"]):
        if step == settings["warmUp"]:
            synchronize()
            began = time.monotonic()
        result = stepper.take(state)
        state = result.state
        losses.append(result.loss)
        if step < settings["warmUp"]:
            continue
        tokens += result.tokens
        needed += used.needed(result.rows, result.tokens, result.trained) if used else 0.0
        if step + 1 == settings["steps"] or settings["steps"] <= 4:
            synchronize()
            seconds = time.monotonic() - began
            figures.add(
                tokensPerSecond=tokens / seconds,
                mfu=used.share(needed, seconds) if used else None,
                stepSeconds=seconds / (step + 1 - settings["warmUp"]),
                **memory(ranks.device),
            )
    total = torch.stack(losses)
    dist.all_reduce(total)
    figures.add(firstLoss=float(total[0]), lastLoss=float(total[-1]))


def measure_snapshot(engine: Engine, ranks: Ranks, figures: Figures) -> None:
    """Measure how long training waits for a checkpoint: the first time, and later times."""
    snapshot = Snapshot(engine, ranks)
    if not snapshot.is_copy:
        figures.add(stallProblem="the memory of the host is too small for a copy")
        return
    stalls = []
    for _ in range(2):
        synchronize()
        began = time.monotonic()
        snapshot.take()
        stalls.append(time.monotonic() - began)
    figures.add(firstStallSeconds=stalls[0], stallSeconds=stalls[1], snapshotBytes=snapshot.size)


def make_plan(settings: dict[str, Any], world: int) -> Plan:
    """Return the plan of a job with these settings."""
    micro, accumulate = settings["microBatch"], settings["accumulate"]
    return Plan(
        zero_stage=settings["stage"],
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        global_batch_size=world * micro * accumulate,
        learning_rate=1e-5,
        total_steps=settings["steps"],
        warmup_steps=0,
        activation_checkpointing="Always" if settings["recompute"] else "Never",
        checkpoint_bytes=0,
    )


def planned(parameters: int, settings: dict[str, Any], plan: Plan, place: Place) -> DeviceBytes:
    """Return the bytes of a device that the operator would plan for such a job."""
    shape = SHAPES[settings["shape"]]
    model = memory_facts.measure(shape.config(), shape.row, torch.bfloat16)
    assert model is not None
    setting = Setting(
        world=place.world,
        devices_per_worker=place.processes,
        zero_stage=plan.zero_stage,
        micro_batch_size=plan.micro_batch_size,
        recompute=plan.activation_checkpointing,
        offload="None",
        weight_bytes=2,
        state_bytes=8 if settings["moments"] == "BF16" else 12,
    )
    return device_bytes(parameters, model, setting)


def facts(kernels: Kernels, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what distinguishes this run."""
    chosen = {name: settings[name] for name in ("shape", "stage", "moments", "recompute")}
    return chosen | {"kernels": sorted(kernels.used)}


def memory(device: torch.device) -> dict[str, int | None]:
    """Return the peak of torch's allocations so far, and all that is in use on the device now."""
    if device.type != "cuda":
        return {"peakBytes": None}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "usedBytes": total - free,
        "peakBytes": torch.cuda.max_memory_allocated(device),
        "reservedBytes": torch.cuda.max_memory_reserved(device),
    }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
