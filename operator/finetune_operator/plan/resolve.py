"""The choice of what the spec leaves open, made once the data is known."""

import math
from typing import Literal

from finetune_api import mixture
from finetune_api.progress import DataSummary, Plan, SourceSummary
from finetune_api.run import PrepareResult
from finetune_api.spec import FineTuneJobSpec, Training

_STEPS_WANTED = 200  # with fewer, a schedule with warm-up has too few steps
_BATCHES = (64, 32, 16, 8)
_RECOMPUTE_FROM = 1e9  # parameters; below, activations take little of a device's memory


def resolve(spec: FineTuneJobSpec, prepared: PrepareResult) -> tuple[Plan, DataSummary]:
    """Return the plan and the data summary of a job.

    The defaults and the reasons for them are in docs/reference/defaults.md.
    """
    training, deepspeed = spec.training, spec.deepspeed
    micro = (deepspeed and deepspeed.micro_batch_size) or 1
    rows = prepared.data.epoch_rows or prepared.data.rows
    batch = training.global_batch_size or _global_batch(spec, micro, rows)
    total = training.max_steps or _steps(spec, rows, batch)
    plan = Plan(
        zero_stage=(deepspeed and deepspeed.zero_stage) or 2,
        micro_batch_size=micro,
        gradient_accumulation_steps=math.ceil(batch / (spec.world_size * micro)),
        global_batch_size=batch,
        learning_rate=training.learning_rate or _learning_rate(training, prepared.parameter_count),
        total_steps=total,
        warmup_steps=_warmup(spec, total),
        activation_checkpointing=_recompute(spec, prepared.parameter_count),
        offload=(deepspeed and deepspeed.offload) or "None",
        checkpoint_bytes=training.optimizer.state_bytes * prepared.parameter_count,
    )
    epochs = min(total * batch, _run_rows(spec, rows, total * batch)) / rows
    data = prepared.data.replace(
        steps_per_epoch=math.ceil(rows / batch), sources=_passes(spec, prepared.data, epochs)
    )
    return plan, data


def _passes(spec: FineTuneJobSpec, data: DataSummary, epochs: float) -> list[SourceSummary]:
    """Return the sources, each with how many times its rows are seen in the run."""
    sources = data.sources
    if len(sources) != len(spec.dataset.train):
        return sources  # the list did not fit into the prepare pod's message
    rows = [source.rows for source in sources]
    weights = [s.weight for s in spec.dataset.train if s.weight is not None]
    counts = mixture.epoch_counts(rows, weights)
    return [
        source.replace(passes=round(epochs * count / max(1, source.rows), 2))
        for source, count in zip(sources, counts, strict=True)
    ]


def rescaled(plan: Plan, spec: FineTuneJobSpec) -> Plan:
    """Return the plan for the gang's current size, which may change while the job is suspended.

    Only what the spec sets, and what follows from it, is changed. Defaults that this version of the
    operator would choose differently do not change a run that has begun.
    """
    deepspeed = spec.deepspeed
    micro = (deepspeed and deepspeed.micro_batch_size) or plan.micro_batch_size
    return plan.replace(
        zero_stage=(deepspeed and deepspeed.zero_stage) or plan.zero_stage,
        micro_batch_size=micro,
        gradient_accumulation_steps=math.ceil(plan.global_batch_size / (spec.world_size * micro)),
        activation_checkpointing=_requested_recompute(spec) or plan.activation_checkpointing,
        offload=(deepspeed and deepspeed.offload) or plan.offload,
    )


def _global_batch(spec: FineTuneJobSpec, micro: int, rows: int) -> int:
    """Return the largest batch of 8 to 64 rows with enough steps.

    It is a multiple of the rows that all devices process at once.
    """
    unit = spec.world_size * micro
    candidates = [max(unit, size // unit * unit) for size in _BATCHES]
    for size in candidates:
        if (spec.training.max_steps or _steps(spec, rows, size)) >= _STEPS_WANTED:
            return size
    return candidates[-1]


def _requested_recompute(spec: FineTuneJobSpec) -> Literal["Never", "Always"] | None:
    wanted = spec.deepspeed.activation_checkpointing if spec.deepspeed else None
    return None if wanted == "Auto" else wanted


def _recompute(spec: FineTuneJobSpec, parameters: int) -> Literal["Never", "Always"]:
    return _requested_recompute(spec) or ("Always" if parameters >= _RECOMPUTE_FROM else "Never")


def _run_rows(spec: FineTuneJobSpec, rows: int, limit: int) -> int:
    return spec.training.rows_of_run(rows) or limit


def _steps(spec: FineTuneJobSpec, rows: int, batch: int) -> int:
    run_rows = spec.training.rows_of_run(rows)
    assert run_rows is not None
    return math.ceil(run_rows / batch)


def _learning_rate(training: Training, parameters: int) -> float:
    factor = 2.0 if training.objective == "ContinuedPretraining" else 1.0
    if parameters < 2e9:
        return factor * 2.0e-5
    return factor * (1.0e-5 if parameters <= 15e9 else 5.0e-6)


def _warmup(spec: FineTuneJobSpec, total: int) -> int:
    training = spec.training
    if training.warmup_steps is not None:
        return min(training.warmup_steps, total - 1)
    ratio = 0.03 if training.warmup_ratio is None else training.warmup_ratio
    return min(math.ceil(ratio * total), total - 1)
