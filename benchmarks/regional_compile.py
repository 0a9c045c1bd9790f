"""Compares passes with each decoder layer compiled to plain passes, forward and backward (ADR 19).

The model has the shapes of SmolLM2-135M and random weights. The rows are packed as in the trainer,
with documents of different lengths in every row. Needs a C++ compiler, which the trainer's image
does not contain.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import statistics
import time

import numpy as np
import torch

from finetune_trainer.data.prepared import Row
from finetune_trainer.model import attention
from finetune_trainer.model.language_model import Batch, LanguageModel, make_batch

_CPU = torch.device("cpu")


def make_model(dtype: torch.dtype, layers: int) -> LanguageModel:
    """Return a model like SmolLM2-135M with so many layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        attn_implementation=attention.NAME,
    )
    return LanguageModel(LlamaForCausalLM(config).to(dtype))


def make_batches(count: int, tokens: int) -> list[Batch]:
    """Return rows with documents of 20 to 200 tokens, half of which are trained."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        lengths: list[int] = []
        while (left := tokens - sum(lengths)) > 0:
            lengths.append(min(left, int(generator.integers(20, 200))))
        trained = generator.random(tokens) < 0.5
        trained[np.cumsum([0, *lengths[:-1]])] = False
        ids = generator.integers(0, 49_152, tokens).astype(np.uint32)
        row = Row(ids, trained.astype(np.uint8), np.array(lengths, np.uint32))
        made.append(make_batch([row], _CPU))
    return made


def measure(model: LanguageModel, batches: list[Batch], warm_up: int) -> tuple[float, float]:
    """Return the sum of the seconds of the warm-up passes and the median of the others."""
    times = []
    for one in batches:
        began = time.perf_counter()
        (model(one) / len(one.targets)).backward()
        times.append(time.perf_counter() - began)
        model.zero_grad()
    return sum(times[:warm_up]), statistics.median(times[warm_up:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512, help="tokens per row (default: 512)")
    parser.add_argument("--layers", type=int, default=30, help="layers of the model (default: 30)")
    parser.add_argument("--precision", choices=["BF16", "FP32"], default="FP32")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=3,
        help="passes that are not measured and that include compilation (default: 3)",
    )
    parser.add_argument("--passes", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = torch.float32 if options.precision == "FP32" else torch.bfloat16
    batches = make_batches(options.warm_up + options.passes, options.tokens)
    print(f"{options.layers} layers, {options.tokens} tokens, {options.precision}, CPU", flush=True)
    for name in ("plain", "compiled"):
        model = make_model(dtype, options.layers)
        if name == "compiled":
            for layer in model.model.model.layers:
                layer.compile(dynamic=True)
        first, then = measure(model, batches, options.warm_up)
        then_ms, speed = 1e3 * then, options.tokens / then
        text = f"warm-up {first:6.1f} s, then {then_ms:6.0f} ms per pass, {speed:.0f} tokens/s"
        print(f"{name:9} {text}", flush=True)


if __name__ == "__main__":
    main()
