"""The choice of stage, offload, recomputation and micro-batch where the spec is silent (pure).

Among the settings that fit into the memory of a device, those with an estimated speed within 5 % of
the best are equally good. Of these, the smallest stage is taken, then no recomputation, then the
smallest micro-batch. Offload is tried only if nothing fits without it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune_api import memory
from finetune_api.devices import DeviceType
from finetune_api.memory import DeviceBytes, ModelFacts, Recompute, Setting
from finetune_api.progress import Plan
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plan.speed import tokens_per_second

CAREFUL_STAGE, CAREFUL_MICRO_BATCH = 2, 1
"""What is chosen if nothing is known of the device."""
_RECOMPUTE_FROM = 1e9  # parameters; below, activations take little of a device's memory
_USABLE = 0.94  # of a device's memory; the allocator leaves gaps
_EQUAL = 0.95  # of the best estimated speed
_MOST_HOST = 2e12  # bytes of a worker's host; more are not offloaded to it without a request
_MOST_TOKENS = 65_536  # of a micro-batch; larger ones are not faster


@dataclass(frozen=True)
class Model:
    """What the choice depends on, besides the spec."""

    parameters: int
    facts: ModelFacts | None
    device_name: str | None
    device: DeviceType | None
    batch: int
    """Rows per optimizer step."""


@dataclass(frozen=True)
class Choice:
    """The chosen setting, its memory if it could be computed, and why it was chosen."""

    setting: Setting
    needed: DeviceBytes | None
    reasons: tuple[str, ...]
    fits: bool = True


def choose(spec: FineTuneJobSpec, model: Model) -> Choice:
    """Return the setting of a gang."""
    if model.facts is None or model.device is None:
        return _careful(spec, model)
    every = list(_candidates(spec, model))
    limit = model.device.memory_bytes
    for share in (_USABLE, 1.0):
        for offloaded in (False, True):
            fitting = [
                one
                for one in every
                if (one.offload != "None") == offloaded and _total(model, one) <= share * limit
            ]
            if fitting:
                return _explained(spec, model, _best(model, fitting), every)
    return _explained(spec, model, min(every, key=lambda one: _total(model, one)), every)


def careful_setting(spec: FineTuneJobSpec, parameters: int) -> Setting:
    """Return the setting that is taken if the memory of the device is not known."""
    wanted = spec.deepspeed
    recompute: Recompute = "Always" if parameters >= _RECOMPUTE_FROM else "Never"
    return Setting(
        world=spec.world_size,
        devices_per_worker=spec.workers.devices_per_worker,
        zero_stage=(wanted and wanted.zero_stage) or CAREFUL_STAGE,
        micro_batch_size=(wanted and wanted.micro_batch_size) or CAREFUL_MICRO_BATCH,
        recompute=requested_recompute(spec) or recompute,
        offload=(wanted and wanted.offload) or "None",
        weight_bytes=2 if spec.training.precision == "BF16" else 4,
        state_bytes=spec.training.optimizer.state_bytes,
    )


def planned_setting(spec: FineTuneJobSpec, plan: Plan, parameters: int) -> Setting:
    """Return the setting of a plan, for a gang of the size that the spec has."""
    return replace(
        careful_setting(spec, parameters),
        zero_stage=plan.zero_stage,
        micro_batch_size=plan.micro_batch_size,
        recompute=plan.activation_checkpointing,
        offload=plan.offload,
    )


def requested_recompute(spec: FineTuneJobSpec) -> Recompute | None:
    """Return what the spec sets; None leaves it to the planner."""
    wanted = spec.deepspeed.activation_checkpointing if spec.deepspeed else None
    return None if wanted == "Auto" else wanted


def _careful(spec: FineTuneJobSpec, model: Model) -> Choice:
    setting = careful_setting(spec, model.parameters)
    if model.facts is None:
        why = "the memory of this model could not be measured: careful defaults"
        return Choice(setting, None, (why,))
    why = "the device is not known: careful defaults; set workers.deviceType for better ones"
    return Choice(setting, memory.device_bytes(model.parameters, model.facts, setting), (why,))


def _candidates(spec: FineTuneJobSpec, model: Model) -> Iterator[Setting]:
    """Yield every setting that the spec allows."""
    base, wanted = careful_setting(spec, model.parameters), spec.deepspeed
    stages = [wanted.zero_stage] if wanted and wanted.zero_stage else [1, 2, 3]
    wanted_offload = wanted and wanted.offload
    offloads = [wanted_offload] if wanted_offload else list(memory.LEAST_STAGE)
    recompute = requested_recompute(spec)
    ways: list[Recompute] = [recompute] if recompute else ["Never", "Always"]
    for offload in offloads:
        for stage in (stage for stage in stages if stage >= memory.LEAST_STAGE[offload]):
            for way in ways:
                for micro in _micro_batches(spec, model):
                    setting = replace(
                        base,
                        zero_stage=stage,
                        offload=offload,
                        recompute=way,
                        micro_batch_size=micro,
                    )
                    if wanted_offload or _host(model, setting) <= _MOST_HOST or offload == "None":
                        yield setting


def _micro_batches(spec: FineTuneJobSpec, model: Model) -> list[int]:
    """Return the possible sizes: all that leave the global batch as it is."""
    if spec.deepspeed and spec.deepspeed.micro_batch_size:
        return [spec.deepspeed.micro_batch_size]
    assert model.facts is not None
    rows = max(1, model.batch // spec.world_size)
    most = max(1, _MOST_TOKENS // model.facts.row_tokens)
    return [size for size in range(1, min(rows, most) + 1) if rows % size == 0]


def _total(model: Model, setting: Setting) -> int:
    assert model.facts is not None
    return memory.device_bytes(model.parameters, model.facts, setting).total


def _host(model: Model, setting: Setting) -> int:
    assert model.facts is not None
    largest = model.facts.largest_parameter
    return memory.host_bytes(model.parameters, largest, setting).peak


def speed(model: Model, setting: Setting) -> float:
    """Return the estimated tokens per second of all devices."""
    assert model.facts is not None
    assert model.device is not None
    accumulated = max(1, model.batch // (setting.world * setting.micro_batch_size))
    return tokens_per_second(model.parameters, model.facts, setting, model.device, accumulated)


def _best(model: Model, fitting: list[Setting]) -> Setting:
    speeds = {one: speed(model, one) for one in fitting}
    least = _EQUAL * max(speeds.values())
    return min(
        (one for one in fitting if speeds[one] >= least),
        key=lambda one: (one.zero_stage, one.recompute == "Always", one.micro_batch_size),
    )


def _explained(
    spec: FineTuneJobSpec, model: Model, chosen: Setting, every: list[Setting]
) -> Choice:
    """Return the choice with a sentence for each of its parts that the spec leaves open."""
    assert model.facts is not None
    assert model.device is not None
    used = memory.device_bytes(model.parameters, model.facts, chosen)
    limit = model.device.memory_bytes
    reasons = [f"{model.device_name}: {_size(used.total)} of {_size(limit)} per device are needed"]
    if used.total > _USABLE * limit:
        reasons[0] += ", which is tight"
    wanted = spec.deepspeed

    def otherwise(**change: object) -> str:
        return _otherwise(model, chosen, replace(chosen, **change), limit)  # type: ignore[arg-type]

    if not (wanted and wanted.zero_stage):
        if chosen.zero_stage > 1 and chosen.offload == "None":
            smaller = chosen.zero_stage - 1
            reasons.append(
                f"zeroStage {chosen.zero_stage}: {smaller} {otherwise(zero_stage=smaller)}"
            )
        elif chosen.zero_stage > 1:
            reasons.append(
                f"zeroStage {chosen.zero_stage}: the smallest that fits with the offload"
            )
        else:
            reasons.append("zeroStage 1: it fits, and communicates least")
    if chosen.offload != "None" and not (wanted and wanted.offload):
        plain = min(_total(model, one) for one in every if one.offload == "None")
        reasons.append(f"offload {chosen.offload}: without it at least {_size(plain)} are needed")
    if not requested_recompute(spec):
        if chosen.recompute == "Never":
            reasons.append("activationCheckpointing Never: all activations fit")
        else:
            reasons.append(f"activationCheckpointing Always: Never {otherwise(recompute='Never')}")
    if not (wanted and wanted.micro_batch_size):
        sizes = _micro_batches(spec, model)
        larger = next((size for size in sizes if size > chosen.micro_batch_size), None)
        why = "more rows would change the global batch"
        if larger:
            why = f"{larger} {otherwise(micro_batch_size=larger)}"
        reasons.append(f"microBatchSize {chosen.micro_batch_size}: {why}")
    return Choice(chosen, used, tuple(reasons), fits=used.total <= limit)


def _otherwise(model: Model, chosen: Setting, other: Setting, limit: int) -> str:
    """Return why another setting was not taken."""
    needed = _total(model, other)
    if needed > _USABLE * limit:
        return f"needs {_size(needed)}"
    gain = speed(model, other) / speed(model, chosen) - 1
    if gain >= 0:
        return f"would be at most {100 * gain:.0f} % faster by estimate"
    return f"would be {-100 * gain:.0f} % slower by estimate"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
