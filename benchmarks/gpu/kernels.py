"""Runs the trainer's self-check for the shapes of a model: `... kernels SHAPE DEVICE RESULT`."""

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.shapes import SHAPES

from finetune_trainer.model import kernels, self_check


def main() -> None:
    shape, device, result = sys.argv[1:]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        SHAPES[shape].config().save_pretrained(folder)
        request = self_check.Request(kernels.REGISTRY, folder, "bfloat16", device)
        found = self_check.run(request)
    Path(result).write_text(json.dumps(found))
    print(f"{shape}: {time.monotonic() - began:.1f} s")
    for name, problem in found.items():
        print(f"  {name}: {problem or 'agrees with plain operations'}")


if __name__ == "__main__":
    main()
