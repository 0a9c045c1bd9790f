"""Measures what a rank holds while it loads a model: elements of parameters, and host memory."""

import ctypes
import gc
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from finetune_api.run import RunConfig
from finetune_trainer.model import language_model, loading
from finetune_trainer.run_dir.paths import RunPaths


class _Peak:
    """The most elements of all tensors that were made since `_forget_earlier_objects`."""

    def __init__(self, itemsize: int) -> None:
        self._itemsize, self.elements = itemsize, 0

    def advance(self) -> None:
        self.elements = max(self.elements, _tensor_bytes() // self._itemsize)


def load(case: dict[str, Any], control: Any) -> dict[str, Any]:
    """Load the model of a case. Return what each rank held, and whether all weights are right."""
    config = RunConfig.model_validate(case["config"])
    assert config.plan is not None
    folder = RunPaths.of(config).model
    peak = _Peak(2 if config.training.precision == "BF16" else 4)
    _forget_earlier_objects()
    before = _status("VmRSS")
    model = loading.load(folder, config.training, config.plan, peak.advance)
    peak.advance()
    grown = _status("VmHWM") - before
    gc.unfreeze()
    whole = language_model.load(folder, next(model.parameters()).dtype)
    gathered: list[Any] = [None] * dist.get_world_size()
    mine = (peak.elements, grown, _sum_of_slices(model))
    dist.all_gather_object(gathered, mine, group=control)
    found = {id(parameter): name for name, parameter in model.model.named_parameters()}
    return {
        "total": sum(parameter.numel() for parameter in whole.parameters()),
        "largest": max(parameter.numel() for parameter in whole.parameters()),
        "elements": [elements for elements, _, _ in gathered],
        "grown": [bytes_ for _, bytes_, _ in gathered],
        "slices": sum(size for *_, size in gathered),
        "sameNames": list(found.values()) == list(whole.names().values()),
        "different": [
            name
            for (name, parameter), expected in zip(
                model.named_parameters(), whole.parameters(), strict=True
            )
            if not torch.equal(_gathered(parameter), expected)
        ],
        "sameBuffers": all(
            torch.equal(buffer, expected)
            for buffer, expected in zip(model.buffers(), whole.buffers(), strict=True)
        ),
        "tied": model.model.lm_head.weight is model.model.get_input_embeddings().weight,
    }


def _sum_of_slices(model: Any) -> int:
    slices = (getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters())
    return sum(part.numel() for part in slices)


def _gathered(parameter: Any) -> torch.Tensor:
    """Return a complete parameter from the slices of all ranks; collective."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    parts = [torch.empty_like(parameter.ds_tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, parameter.ds_tensor)
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


def _tensor_bytes() -> int:
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor) and found.device.type == "cpu":
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _forget_earlier_objects() -> None:
    """Begin to measure the peak of memory, and hide from `gc` what exists now."""
    gc.collect()
    gc.freeze()
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory would be used again without a trace
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    """Return a field of this process's status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))
