"""Advice for a device that is out of memory, with numbers (pure).

The memory that the states of a parameter need is computed as in Rajbhandari et al. 2020 (ZeRO),
figure 1, with gradients accumulated in fp32.
"""

from finetune_api.progress import Plan
from finetune_api.spec import Training

_GIGABYTE = 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch or NCCL could not allocate memory of a device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(_is_cause(line) for line in _lines(error))
    )


def cause(error: BaseException) -> str:
    """Return the line of an error that names the allocation, or else its first line."""
    lines = _lines(error)
    return next(filter(_is_cause, lines), lines[0] if lines else type(error).__name__)[:120]


def message(plan: Plan, training: Training, world: int, cause: str) -> str:
    """Return a message that names what takes the memory, and what can be changed.

    `cause` is the text of torch or NCCL.
    """
    rows, length = plan.micro_batch_size, training.sequence_length
    held = _state_bytes(plan, training, world, plan.zero_stage, plan.offload)
    text = (
        f"out of device memory ({cause}): weights, gradients and optimizer states take "
        f"{_size(held)} per device at ZeRO stage {plan.zero_stage} on {world} devices, in addition "
        f"to the activations of {rows} x {length} tokens; "
    )
    return text + ", or ".join(_remedies(plan, training, world))


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines()


def _is_cause(line: str) -> bool:
    return "out of memory" in line.lower()  # the text of CUDA, which NCCL repeats


def _remedies(plan: Plan, training: Training, world: int) -> list[str]:
    """Return the changes that are possible, the cheapest first."""
    found = []
    if plan.micro_batch_size > 1:
        found.append(f"set deepspeed.microBatchSize to {plan.micro_batch_size // 2}")
    if plan.activation_checkpointing != "Always":
        found.append("set deepspeed.activationCheckpointing to Always")
    if plan.zero_stage < 3 and world > 1:
        stage = plan.zero_stage + 1
        after = _size(_state_bytes(plan, training, world, stage, plan.offload))
        found.append(f"raise deepspeed.zeroStage to {stage} ({after} per device)")
    if plan.offload == "None" and plan.zero_stage > 1:
        after = _size(_state_bytes(plan, training, world, plan.zero_stage, "Optimizer"))
        found.append(f"set deepspeed.offload to Optimizer ({after} per device)")
    if world > 1 or not found:
        found.append("use more workers")
    length = training.sequence_length
    found.append(f"create a new job with training.sequenceLength {length // 2}")
    return found


def _state_bytes(plan: Plan, training: Training, world: int, stage: int, offload: str) -> float:
    """Return the bytes of weights, gradients and optimizer states per device."""
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
