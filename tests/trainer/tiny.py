"""A tiny but real chat model and data for tests: 0.1 M parameters, created in a second."""

import json
import random
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = (
    "the cat sat on a warm mat while rain fell over green hills and small boats came home late "
    "with silver fish for every hungry child in our old town near that quiet river"
)
VOCABULARY = TEXT.split()


def make_messages(count: int, seed: int = 0) -> list[dict]:
    """Return random conversations of one to three exchanges."""
    generator = random.Random(seed)

    def sentence() -> str:
        return " ".join(generator.choices(VOCABULARY, k=generator.randint(3, 9)))

    rows = []
    for _ in range(count):
        messages = []
        for _ in range(generator.randint(1, 3)):
            messages.append({"role": "user", "content": sentence()})
            messages.append({"role": "assistant", "content": sentence()})
        rows.append({"messages": messages})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write rows as JSON Lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_tokenizer(
    template: str = TEMPLATE,
    *,
    text: str = TEXT,
    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
    bos: str | None = "<|im_start|>",
    eos: str = "<|im_end|>",
):
    """Return a byte-level BPE tokenizer of 400 tokens, trained on a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = template
    return fast


def make_model(
    folder: Path,
    *,
    tied: bool = True,
    template: str = TEMPLATE,
    dtype: str = "bfloat16",
    width: int = 64,
    layers: int = 2,
) -> Path:
    """Write a Llama as a Hugging Face folder and return the folder.

    From width 256 on, ZeRO-3 keeps most parameters in slices (stage3_param_persistence_threshold).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(template)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder
