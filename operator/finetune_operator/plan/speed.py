"""A rough estimate of the speed of a training, for the comparison of settings (pure).

It is a roofline: the time of the computation at a share of the device's peak, plus the time of the
communication. It has not been compared with a measurement on any device.
"""

from finetune_api.devices import DeviceType
from finetune_api.memory import ModelFacts, Setting

_EFFICIENCY = 0.5  # of the peak that the computation reaches: assumed
_LINK_EFFICIENCY = 0.8  # of what a data sheet says of the links of a node: assumed
_NETWORK = 50e9  # bytes/s per device between nodes (400 Gb/s): assumed
_LAUNCH = 1e-3  # s per layer and micro-batch, below which the host is the limit: assumed
_HOST_LINK = 20e9  # bytes/s between a device and its host: assumed
_HOST_UPDATE = 24  # bytes per parameter of an update on the host: gradients, states and weights


def tokens_per_second(
    parameters: int, facts: ModelFacts, setting: Setting, device: DeviceType, accumulated: int
) -> float:
    """Return the tokens per second of all devices, with so many micro-batches in a step."""
    tokens = setting.micro_batch_size * facts.row_tokens
    compute = tokens * _flops_per_token(facts, setting) / (_EFFICIENCY * device.peak_flops)
    compute = max(compute, _LAUNCH * facts.layers)
    seconds = compute + _communication(parameters, setting, device, accumulated)
    if setting.offload != "None":
        share = parameters / setting.world
        seconds += _HOST_UPDATE * share / _HOST_LINK / accumulated
    return setting.world * tokens / seconds


def _flops_per_token(facts: ModelFacts, setting: Setting) -> float:
    """Return the FLOPs of forward and backward pass (PaLM, appendix B), for a row of one document.

    With recomputation, the forward pass of the layers is computed twice.
    """
    layers = 6.0 * facts.active_parameters + 6.0 * facts.attention_width * facts.row_tokens
    if setting.recompute == "Always":
        layers *= 4 / 3
    return layers + 6.0 * facts.vocabulary * facts.hidden


def _communication(
    parameters: int, setting: Setting, device: DeviceType, accumulated: int
) -> float:
    """Return the seconds of all collectives of a micro-batch, none of which overlaps."""
    world = setting.world
    bandwidth = _LINK_EFFICIENCY * device.link_bytes_per_second
    if world > setting.devices_per_worker:
        bandwidth = min(bandwidth, setting.devices_per_worker * _NETWORK)
    weights = setting.weight_bytes * parameters * (world - 1) / world
    # An all-reduce sends everything twice. ZeRO-1 sums gradients, and gathers weights, once a step.
    sent = {1: 3 / accumulated, 2: 2 + 1 / accumulated, 3: 3}[setting.zero_stage]
    return sent * weights / bandwidth
