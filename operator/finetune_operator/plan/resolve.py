"""The choice of what the spec leaves open, made once the data is known."""

import math
from typing import Any

from finetune_api import memory, mixture
from finetune_api.devices import Catalogue
from finetune_api.memory import ModelFacts
from finetune_api.progress import (
    MAX_PLAN_REASONS,
    PLAN_REASON_MAX,
    DataSummary,
    ForwardPass,
    Plan,
    SourceSummary,
)
from finetune_api.run import PrepareResult
from finetune_api.spec import DeepSpeed, FineTuneJobSpec, Training
from finetune_api.status import Resolved
from finetune_operator.plan import remedies
from finetune_operator.plan.choice import (
    Choice,
    Model,
    choose,
    planned_setting,
    requested_recompute,
)
from finetune_operator.plan.device_type import name_of

_STEPS_WANTED = 200  # with fewer, a schedule with warm-up has too few steps
_BATCHES = (64, 32, 16, 8)


class DoesNotFitError(Exception):
    """The model does not fit into the memory of the devices. The text says what would fit."""


def resolve(
    spec: FineTuneJobSpec, prepared: PrepareResult, catalogue: Catalogue
) -> tuple[Plan, DataSummary]:
    """Return the plan and the data summary of a job. Raises DoesNotFitError.

    The defaults and the reasons for them are in docs/reference/defaults.md.
    """
    spec = _as_trained(spec, prepared.forward_pass)
    training = spec.training
    rows = prepared.data.epoch_rows or prepared.data.rows
    # The default batch does not depend on the device: a micro-batch is chosen that divides it.
    given = (spec.deepspeed and spec.deepspeed.micro_batch_size) or 1
    batch = training.global_batch_size or _global_batch(spec, given, rows)
    total = training.max_steps or _steps(spec, rows, batch)
    name = name_of(spec, catalogue)
    device = catalogue[name] if name else None
    model = Model(prepared.parameter_count, prepared.model_facts, name, device, batch)
    choice = choose(spec, model)
    if not choice.fits:
        raise DoesNotFitError(remedies.message(spec, model, choice))
    chosen = choice.setting
    plan = Plan(
        zero_stage=chosen.zero_stage,
        micro_batch_size=chosen.micro_batch_size,
        gradient_accumulation_steps=math.ceil(batch / (spec.world_size * chosen.micro_batch_size)),
        global_batch_size=batch,
        learning_rate=training.learning_rate or _learning_rate(training, prepared.parameter_count),
        total_steps=total,
        warmup_steps=_warmup(spec, total),
        activation_checkpointing=chosen.recompute,
        offload=chosen.offload,
        forward_pass=prepared.forward_pass,
        checkpoint_bytes=training.optimizer.state_bytes * prepared.parameter_count,
        device_type=name,
        **_memory(choice, prepared.parameter_count, prepared.model_facts),
    )
    epochs = min(total * batch, _run_rows(spec, rows, total * batch)) / rows
    data = prepared.data.replace(
        steps_per_epoch=math.ceil(rows / batch), sources=_passes(spec, prepared.data, epochs)
    )
    return plan, data


def _as_trained(spec: FineTuneJobSpec, forward_pass: ForwardPass | None) -> FineTuneJobSpec:
    """Return a spec with a micro-batch of 1 where a forward pass computes one document."""
    if forward_pass != "Document":
        return spec
    return spec.replace(deepspeed=(spec.deepspeed or DeepSpeed()).replace(micro_batch_size=1))


def _memory(choice: Choice, parameters: int, facts: ModelFacts | None) -> dict[str, Any]:
    """Return the fields of a plan that describe its memory, and why it was chosen."""
    host = None
    if facts:
        host = memory.host_bytes(parameters, facts.largest_parameter, choice.setting).peak
    reasons = [reason[:PLAN_REASON_MAX] for reason in choice.reasons[:MAX_PLAN_REASONS]]
    return {
        "device_bytes": choice.needed,
        "host_bytes_per_worker": host,
        "reasons": reasons or None,
    }


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


def rescaled(plan: Plan, spec: FineTuneJobSpec, resolved: Resolved | None) -> Plan:
    """Return the plan for the gang's current size, which may change while the job is suspended.

    Only what the spec sets, and what follows from it, is changed. Defaults that this version of the
    operator would choose differently do not change a run that has begun.
    """
    spec = _as_trained(spec, plan.forward_pass)
    deepspeed = spec.deepspeed
    micro = (deepspeed and deepspeed.micro_batch_size) or plan.micro_batch_size
    changed = plan.replace(
        zero_stage=(deepspeed and deepspeed.zero_stage) or plan.zero_stage,
        micro_batch_size=micro,
        gradient_accumulation_steps=math.ceil(plan.global_batch_size / (spec.world_size * micro)),
        activation_checkpointing=requested_recompute(spec) or plan.activation_checkpointing,
        offload=(deepspeed and deepspeed.offload) or plan.offload,
        device_type=spec.workers.device_type or plan.device_type,
    )
    return _with_memory(changed, spec, resolved)


def _with_memory(plan: Plan, spec: FineTuneJobSpec, resolved: Resolved | None) -> Plan:
    """Return a plan with the memory that it needs in a gang of the current size."""
    if plan.device_bytes is None or resolved is None or resolved.model_facts is None:
        return plan
    setting = planned_setting(spec, plan, resolved.parameter_count)
    facts, count = resolved.model_facts, resolved.parameter_count
    needed = memory.device_bytes(count, facts, setting)
    if needed == plan.device_bytes:
        return plan
    host = memory.host_bytes(count, facts.largest_parameter, setting).peak
    # The reasons are those of another gang.
    return plan.replace(device_bytes=needed, host_bytes_per_worker=host, reasons=None)


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
