"""How many bytes a training needs on each device and on each host, by part (pure).

The bytes of weights, gradients and optimizer states are what DeepSpeed 0.19.8 holds with the
engine's configuration; `benchmarks/memory_plan.py` compares them with what it allocates. They are
more than the figures of Rajbhandari et al. 2020 (ZeRO, figure 1), which count one copy of each.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Count, Message

_MOST = 2**53 - 1
Size = Annotated[int, Field(ge=1, le=_MOST)]
"""A number of things that is used as a divisor, hence not 0."""
Recompute = Literal["Never", "Always"]
Offload = Literal["None", "Optimizer", "OptimizerAndParameters"]

LEAST_STAGE: dict[Offload, int] = {"None": 1, "Optimizer": 2, "OptimizerAndParameters": 3}
"""The smallest ZeRO stage that each kind of offload needs."""
LIVE_PARAMETERS = 1_000_000_000
"""The most elements that ZeRO-3 keeps gathered (stage3_max_live_parameters)."""
_SHARE, _SMALLEST, _LARGEST = 16, 1 << 20, 200_000_000
_CHUNK_LOGITS = 1 << 26  # that the loss head computes at once
_RUNTIME = 2_500_000_000  # CUDA context, NCCL, cuBLAS: assumed
_WORKING = 0.5  # of what a layer saves: temporary tensors of its backward pass, assumed
_RANK_HOST = 2 << 30  # of a process, without what grows with the model
_FP32 = 4


class ModelFacts(Message):
    """What the memory and the speed of a training depend on, as the prepare pod measures it."""

    layers: Size = Field(le=10**4, description="layers is the number of layers.")
    hidden: Size = Field(le=10**6, description="hidden is the width of the hidden states.")
    vocabulary: Size = Field(le=10**8, description="vocabulary is the number of rows of the head.")
    layer_parameters: Size = Field(
        description="layerParameters is the number of parameters of the largest layer."
    )
    largest_parameter: Size = Field(
        description="largestParameter is the number of elements of the largest parameter."
    )
    active_parameters: Size = Field(
        description="activeParameters is the number of parameters of all layers that a token is "
        "multiplied with. Of the experts of a layer, it counts those that a token is routed to."
    )
    attention_width: Size = Field(
        description="attentionWidth is the width of all attention heads of all layers."
    )
    row_tokens: Size = Field(
        description="rowTokens is the number of tokens of the row that layerBytes is for."
    )
    layer_bytes: Size = Field(
        description="layerBytes is the number of bytes that a layer keeps of one row for the "
        "backward pass, on average over all layers."
    )


class DeviceBytes(Message):
    """The memory of one device at its peak, by part."""

    weights: Count = Field(description="weights is for the weights that are computed with.")
    gradients: Count = Field(description="gradients is for the accumulated gradients.")
    masters: Count = Field(description="masters is for the fp32 master weights.")
    moments: Count = Field(description="moments is for both moments of the optimizer.")
    activations: Count = Field(
        description="activations is for what the layers keep for the backward pass."
    )
    head: Count = Field(description="head is for the logits and the gradients of the head.")
    buckets: Count = Field(
        description="buckets is for gathered weights and the buckets of collectives."
    )
    other: Count = Field(
        description="other is for the runtime of the device, and for temporary copies of the "
        "optimizer step where they exceed activations, head and buckets."
    )

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.model_dump().values())


class HostBytes(Message):
    """The memory of the host that a worker needs, by phase, and the largest of them."""

    load: Count
    training: Count
    checkpoint: Count
    resume: Count
    export: Count

    @property
    def peak(self) -> int:
        """The largest of all phases."""
        return max(self.load, self.training, self.checkpoint, self.resume, self.export)


@dataclass(frozen=True)
class Setting:
    """How a training is distributed, as far as its memory depends on it."""

    world: int
    devices_per_worker: int
    zero_stage: int
    micro_batch_size: int
    recompute: Recompute
    offload: Offload
    weight_bytes: int
    """Bytes per parameter of the weights that are computed with: 2 in BF16, 4 in FP32."""
    state_bytes: int
    """Bytes per parameter in a checkpoint: the fp32 master weight and both moments."""


def bucket_elements(parameters: int) -> int:
    """Return how many elements DeepSpeed sends in one collective.

    More than 16 buckets in a model save little memory and cost latency. Larger collectives than the
    largest are not faster. ZeRO-1 and 2 need an even number.
    """
    return min(max(parameters // _SHARE, _SMALLEST), _LARGEST) // 2 * 2


def device_bytes(parameters: int, facts: ModelFacts, setting: Setting) -> DeviceBytes:
    """Return the memory of one device at its peak, by part."""
    states = state_bytes(parameters, setting)
    activations = _activations(facts, setting)
    head = _head(facts, setting)
    buckets = _buckets(parameters, facts, setting)
    during_step = _step_copies(parameters, setting)
    parts = states | {
        "activations": activations,
        "head": head,
        "buckets": buckets,
        "other": _RUNTIME + max(0, during_step - activations - head - buckets),
    }
    # The facts come from a pod. The plan of absurd ones must still be valid.
    return DeviceBytes(**{part: min(size, _MOST) for part, size in parts.items()})


def state_bytes(parameters: int, setting: Setting) -> dict[str, int]:
    """Return the bytes of weights, gradients, master weights and moments of one device."""
    share = -(-parameters // setting.world)
    stage, each = setting.zero_stage, setting.weight_bytes
    on_device = setting.offload == "None"
    found = {
        "weights": each * (share if stage == 3 else parameters),
        "gradients": _FP32 * share,
        "masters": _FP32 * share,
        "moments": (setting.state_bytes - _FP32) * share,
    }
    if stage == 1:
        # Sums in fp32, and in BF16 also the gradients of the last micro-batch until the step.
        found["gradients"] = (_FP32 + (each if each != _FP32 else 0)) * parameters
    if setting.offload == "OptimizerAndParameters":
        found["weights"] = 0
    if each == _FP32 and stage < 3 and on_device:
        found["masters"] = 0  # they are the weights
    if not on_device:
        found |= {"gradients": 0, "masters": 0, "moments": 0}
    return found


def offloaded_bytes(parameters: int, setting: Setting) -> dict[str, int]:
    """Return the bytes of the states of one rank that an offload moves to the host, by part."""
    if setting.offload == "None":
        return {}
    share, each = -(-parameters // setting.world), setting.weight_bytes
    found = {
        "gradients": 2 * _FP32 * share,  # the sums, and the copy that the optimizer reads
        "masters": _FP32 * share,
        "moments": (setting.state_bytes - _FP32) * share,
        "weights": each * share if setting.offload == "OptimizerAndParameters" else 0,
    }
    if setting.zero_stage == 2:
        found["weights"] = each * share  # a copy, through which updates return to the device
    return found


def transfer_elements(largest_parameter: int, setting: Setting) -> int:
    """Return the elements of ZeRO-2's buffers for gradients on their way to the host."""
    is_used = setting.zero_stage == 2 and setting.offload != "None"
    return 2 * largest_parameter if is_used else 0


def _activations(facts: ModelFacts, setting: Setting) -> int:
    rows = setting.micro_batch_size
    layer = rows * facts.layer_bytes
    if setting.recompute == "Never":
        return int((facts.layers + _WORKING) * layer)
    inputs = facts.layers * rows * facts.row_tokens * facts.hidden * setting.weight_bytes
    return int(inputs + (1 + _WORKING) * layer)


def _head(facts: ModelFacts, setting: Setting) -> int:
    """Return the bytes of the loss head, as if every token carried loss (model/head.py)."""
    tokens, each = setting.micro_batch_size * facts.row_tokens, setting.weight_bytes
    chunk = min(tokens, max(1, _CHUNK_LOGITS // facts.vocabulary))
    logits = chunk * facts.vocabulary * (_FP32 + each)
    # The fp32 gradient of the weight, its product with the scale, and that in the weight's type.
    copies = 2 * _FP32 + (each if each != _FP32 else 0)
    return logits + copies * facts.vocabulary * facts.hidden + tokens * facts.hidden * each


def _buckets(parameters: int, facts: ModelFacts, setting: Setting) -> int:
    each, bucket = setting.weight_bytes, bucket_elements(parameters)
    # The gradients of parameters, the bucket that they are copied to, and its reduced copy.
    elements = 3 * bucket
    if setting.zero_stage == 3:
        elements += min(parameters, max(LIVE_PARAMETERS, facts.layer_parameters) + bucket)
    return each * (elements + transfer_elements(facts.largest_parameter, setting))


def _step_copies(parameters: int, setting: Setting) -> int:
    """Return the bytes of a copy of the gradients that ZeRO-2 makes for the step."""
    share = -(-parameters // setting.world)
    return _FP32 * share if setting.zero_stage == 2 and setting.offload == "None" else 0


def host_bytes(parameters: int, largest_parameter: int, setting: Setting) -> HostBytes:
    """Return the memory of the host that one worker needs, by phase."""
    ranks, each = setting.devices_per_worker, setting.weight_bytes
    share = -(-parameters // setting.world)
    base = ranks * _RANK_HOST
    whole = parameters if setting.zero_stage < 3 else share + largest_parameter
    training = base + ranks * sum(offloaded_bytes(parameters, setting).values())
    snapshot = ranks * setting.state_bytes * share
    phases = {
        "load": base + ranks * each * whole,
        "training": training,
        "checkpoint": training + snapshot,
        "resume": training,
        "export": base + each * parameters,
    }
    return HostBytes(**{phase: min(size, _MOST) for phase, size in phases.items()})
