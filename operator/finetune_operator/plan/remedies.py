"""The smallest changes of a job with which a model that does not fit would fit (pure)."""

from collections.abc import Iterator
from dataclasses import replace

from finetune_api import memory
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plan.choice import Choice, Model, choose

_MOST_WORKERS = 4096
_SHORTEST = 256  # tokens of a row


def message(spec: FineTuneJobSpec, model: Model, choice: Choice) -> str:
    """Return why a job cannot run, and what would make it fit, in numbers."""
    assert choice.needed is not None
    assert model.device is not None
    count = spec.world_size
    on = "1 device" if count == 1 else f"each of {count} devices"
    found = list(_remedies(spec, model))
    text = (
        f"a model of {model.parameters / 1e9:.1f}e9 parameters needs at least "
        f"{choice.needed.total / 1e9:.1f} GB on {on} {model.device_name} of "
        f"{model.device.memory_bytes / 1e9:.1f} GB"
    )
    if not found:
        return f"{text}; no number of workers, shorter rows or offload would make it fit"
    return f"{text}; it would fit with {', or with '.join(found)}"


def _remedies(spec: FineTuneJobSpec, model: Model) -> Iterator[str]:
    """Yield the changes that are sufficient alone."""
    training, workers = spec.training, spec.workers
    if replicas := _replicas(spec, model):
        devices = replicas * workers.devices_per_worker
        yield f"workers.replicas {replicas} ({devices} devices)"
    if training.optimizer.moment_precision == "FP32":
        optimizer = training.optimizer.replace(moment_precision="BF16")
        changed = spec.replace(training=training.replace(optimizer=optimizer))
        if choose(changed, model).fits:
            yield "training.optimizer.momentPrecision BF16"
    if spec.deepspeed and spec.deepspeed.offload == "None":
        changed = spec.replace(deepspeed=spec.deepspeed.replace(offload=None))
        choice = choose(changed, model)
        if choice.fits and model.facts:
            host = memory.host_bytes(
                model.parameters, model.facts.largest_parameter, choice.setting
            ).peak
            yield (
                f"deepspeed.offload {choice.setting.offload} ({host / 1e9:.0f} GB of host memory "
                "per worker)"
            )
    if length := _length(spec, model):
        yield f"training.sequenceLength {length}"


def _replicas(spec: FineTuneJobSpec, model: Model) -> int | None:
    """Return the smallest number of workers with which the model fits, and its batch is divided."""

    def fits(replicas: int) -> bool:
        changed = spec.replace(workers=spec.workers.replace(replicas=replicas))
        return choose(changed, model).fits

    low, high = spec.workers.replicas, 2 * spec.workers.replicas
    while high <= _MOST_WORKERS and not fits(high):
        low, high = high, 2 * high
    if high > _MOST_WORKERS:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    batch = spec.training.global_batch_size
    if batch is None:
        return high
    rows = spec.workers.devices_per_worker * (
        (spec.deepspeed and spec.deepspeed.micro_batch_size) or 1
    )
    return next((n for n in range(high, batch // rows + 1) if batch % (n * rows) == 0), None)


def _length(spec: FineTuneJobSpec, model: Model) -> int | None:
    """Return the largest half, quarter, ... of the length of rows with which the model fits."""
    facts = model.facts
    assert facts is not None
    length = facts.row_tokens // 2
    while length >= _SHORTEST:
        saved = max(1, facts.layer_bytes * length // facts.row_tokens)
        shorter = facts.replace(row_tokens=length, layer_bytes=saved)
        if choose(spec, replace(model, facts=shorter)).fits:
            return length
        length //= 2
    return None
