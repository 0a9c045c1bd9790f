"""What a device says about its memory, for the comparison with the plan."""

from typing import Any

import torch

_NAME_MAX = 36  # characters; the size of the memory follows


def facts(device: torch.device) -> dict[str, Any]:
    """Return the fields of Progress about a device; none for a CPU. Does not wait for the device.

    The peak is what torch has reserved, without the runtime of the device.
    """
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device_memory_bytes": torch.cuda.max_memory_reserved(device),
        "device_name": f"{properties.name[:_NAME_MAX]}, {properties.total_memory / 1e9:.1f} GB",
    }
