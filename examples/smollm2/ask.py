"""Give the same prompt to several models and print their answers.

python ask.py "How was your weekend?" MODEL_FOLDER [MODEL_FOLDER ...]
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def answer(folder: str, prompt: str) -> str:
    """Return the answer of a model, decoded greedily, of at most 48 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=48, do_sample=False)
    text: str = tokenizer.decode(
        output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    return text.strip()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    for model_folder in sys.argv[2:]:
        print(f"{model_folder}\n    {answer(model_folder, sys.argv[1])}")
