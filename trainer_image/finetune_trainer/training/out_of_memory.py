"""Advice for a device that is out of memory, with numbers (pure)."""

from finetune_api import memory
from finetune_api.memory import Offload, Setting
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


def _state_bytes(plan: Plan, training: Training, world: int, stage: int, offload: Offload) -> int:
    """Return the bytes of weights, gradients and optimizer states per device."""
    setting = Setting(
        world=world,
        devices_per_worker=1,
        zero_stage=stage,
        micro_batch_size=plan.micro_batch_size,
        recompute=plan.activation_checkpointing,
        offload=offload,
        weight_bytes=2 if training.precision == "BF16" else 4,
        state_bytes=training.optimizer.state_bytes,
    )
    parameters = plan.checkpoint_bytes // training.optimizer.state_bytes
    return sum(memory.state_bytes(parameters, setting).values())


def _size(held: float) -> str:
    return f"{held / _GIGABYTE:.1f} GB"
