"""What the machine is, and what its devices do with a large matmul: `... machine RESULT`."""

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

_SECONDS = 2.0


def main() -> None:
    import deepspeed
    import transformers

    result = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": deepspeed.__version__,
        "cuda": torch.version.cuda,
        "devices": [
            torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
        ],
    }
    Path(sys.argv[1]).write_text(json.dumps(result))
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        result |= {"memoryBytes": memory, **rates(torch.device("cuda", 0), 8192)}
    else:
        result |= rates(torch.device("cpu"), 512)
    Path(sys.argv[1]).write_text(json.dumps(result))


def rates(device: torch.device, size: int) -> dict[str, Any]:
    """Return FLOP/s of a bf16 matmul, and bytes per second of a copy on the device, both ways."""
    matrix = torch.randn(size, size, device=device).to(torch.bfloat16)
    copied = torch.empty_like(matrix)
    return {
        "matmulFlops": 2 * size**3 * per_second(lambda: matrix @ matrix, device),
        "copyBytesPerSecond": 2 * matrix.nbytes * per_second(lambda: copied.copy_(matrix), device),
    }


def per_second(work: Any, device: torch.device) -> float:
    done, began = -10, time.monotonic()
    while True:
        for _ in range(10):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += 10
        if done == 0:
            began = time.monotonic()  # the first ten are the warm-up
        elif (spent := time.monotonic() - began) > _SECONDS / (1 if device.type == "cuda" else 10):
            return done / spent


if __name__ == "__main__":
    main()
