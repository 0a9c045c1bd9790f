"""What to change when a device has no memory left, in numbers (pure).

What the states of a parameter take is ZeRO's own account (Rajbhandari et al. 2020, figure 1), with
gradients accumulated in fp32.
"""

from finetune_api.run import RunConfig

_GIGABYTE = 1e9


def is_one(error: BaseException) -> bool:
    """Whether torch or NCCL say, on whatever device, that memory could not be had."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(_says_so(line) for line in _lines(error))
    )


def said(error: BaseException) -> str:
    """The line in which it says so; the first one when none does."""
    lines = _lines(error)
    return next(filter(_says_so, lines), lines[0] if lines else type(error).__name__)[:120]


def message(config: RunConfig, world: int, said: str) -> str:
    """One sentence on what took the memory, one on what to change; `said` is torch's own word."""
    plan, training = config.plan, config.training
    assert plan is not None
    rows, length = plan.micro_batch_size, training.sequence_length
    held = _states(config, world, plan.zero_stage, plan.offload)
    text = (
        f"out of device memory ({said}): weights, gradients and optimizer states take "
        f"{_size(held)} a device at ZeRO stage {plan.zero_stage} on {world} devices, beside the "
        f"activations of {rows} x {length} tokens; "
    )
    return text + ", or ".join(_remedies(config, world))


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines()


def _says_so(line: str) -> bool:
    # CUDA's own words, which NCCL repeats, and those of torch's allocator of host memory.
    return "out of memory" in line.lower() or "DefaultCPUAllocator" in line


def _remedies(config: RunConfig, world: int) -> list[str]:
    """Those that are left, the cheapest first."""
    plan = config.plan
    assert plan is not None
    found = []
    if plan.micro_batch_size > 1:
        found.append(f"set deepspeed.microBatchSize to {plan.micro_batch_size // 2}")
    if plan.activation_checkpointing != "Always":
        found.append("set deepspeed.activationCheckpointing to Always")
    if plan.zero_stage < 3 and world > 1:
        stage = plan.zero_stage + 1
        after = _size(_states(config, world, stage, plan.offload))
        found.append(f"raise deepspeed.zeroStage to {stage} ({after} a device)")
    if plan.offload == "None" and plan.zero_stage > 1:
        after = _size(_states(config, world, plan.zero_stage, "Optimizer"))
        found.append(f"set deepspeed.offload to Optimizer ({after} a device)")
    if world > 1 or not found:
        found.append("take more workers")
    length = config.training.sequence_length
    found.append(f"make another job with training.sequenceLength {length // 2}")
    return found


def _states(config: RunConfig, world: int, stage: int, offload: str) -> float:
    """Bytes a device."""
    plan, training = config.plan, config.training
    assert plan is not None
    parameters = plan.checkpoint_bytes / training.optimizer.state_bytes
    weights = 2.0 if training.precision == "BF16" else 4.0
    gradients, optimizer = 4.0, float(training.optimizer.state_bytes)
    if offload != "None":
        optimizer = 0.0
        gradients = 0.0
    if offload == "OptimizerAndParameters":
        weights = 0.0
    optimizer /= world
    gradients /= world if stage >= 2 else 1
    weights /= world if stage == 3 else 1
    return parameters * (weights + gradients + optimizer)


def _size(held: float) -> str:
    return f"{held / _GIGABYTE:.1f} GB"
