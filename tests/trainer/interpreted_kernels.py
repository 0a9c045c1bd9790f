"""Compares kernels of liger-kernel with plain operations under Triton's interpreter, on the CPU.

Run with TRITON_INTERPRET=1. With liger-kernel 0.8.5 and Triton 3.7.1, RMSNorm cannot be interpreted
at all, SwiGLU only if its numbers have a method `to`, and bf16 gives NaN. The self-check on the
device compares all of them.
"""

import json
import tempfile
from typing import Any

import torch
from transformers import LlamaConfig

from finetune_trainer.model import kernels, liger, self_check


class _Number(float):
    def to(self, *_: Any) -> "_Number":
        return self


def main() -> None:
    import liger_kernel.ops.swiglu

    liger_kernel.ops.swiglu.float = _Number
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        architectures=["LlamaForCausalLM"],
    )
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        failed = {liger.NORM}
        checks = kernels.checks(folder, "float32", failed)
    found = {
        check.name: self_check.compare(check, torch.device("cpu"))
        for check in checks
        if check.name in (liger.ROPE, liger.MLP, kernels.LAYER)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
