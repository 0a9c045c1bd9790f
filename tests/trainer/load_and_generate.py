"""Loads a model folder with the installed transformers: `load_and_generate.py FOLDER OUT`.

Writes OUT.safetensors (logits) and OUT.json (versions, the tokens of a chat, stop tokens).
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

CHAT = [
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on a warm mat"},
    {"role": "user", "content": "while rain fell"},
]


def main(folder: str, out: Path) -> None:
    # Before version 5 transformers uses the type that config.json names only with dtype="auto".
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.arange(200).unsqueeze(0)
    with torch.no_grad():
        logits = model.float()(tokens).logits
    save_file({"logits": logits}, str(out.with_suffix(".safetensors")))
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    found = {
        "transformers": transformers.__version__,
        "dtype": str(model.config.torch_dtype)
        if transformers.__version__.startswith("4.")
        else str(model.config.dtype),
        "problems": {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys},
        "text": text,
        "chat": tokenizer(text)["input_ids"],
        "stops": model.generation_config.eos_token_id,
    }
    out.with_suffix(".json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
