"""The models and the rows of the check: random weights, packed rows of documents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 128256
ROW = 4096  # tokens


@dataclass(frozen=True)
class Shape:
    """A Llama. Its sizes are those of Llama 3.1 and 3.2."""

    layers: int
    hidden: int
    inner: int
    heads: int
    groups: int
    tied: bool
    vocabulary: int = VOCABULARY
    row: int = ROW
    """Tokens per row."""

    def config(self) -> Any:
        """Return the configuration of transformers."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            max_position_embeddings=131072,
            tie_word_embeddings=self.tied,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            architectures=["LlamaForCausalLM"],
        )


SHAPES = {
    "tiny": Shape(2, 64, 128, 4, 2, True, vocabulary=512, row=64),
    # Its largest parameters exceed what ZeRO-3 never partitions (1e5 elements).
    "small": Shape(2, 256, 512, 4, 2, False, vocabulary=1024, row=128),
    "1b": Shape(16, 2048, 8192, 32, 8, True),
    "8b": Shape(32, 4096, 14336, 32, 8, False),
}


def make_rows(folder: Path, shape: Shape, count: int) -> None:
    """Write packed rows of four documents on average, of which the first token has no loss."""
    import numpy as np

    from finetune_trainer.data.prepared import Row, RowWriter

    random = np.random.default_rng(1)
    folder.mkdir(parents=True)
    with RowWriter(folder, "train") as writer:
        for _ in range(count):
            cuts = np.sort(random.choice(np.arange(1, shape.row), size=3, replace=False))
            bounds = np.concatenate([[0], cuts, [shape.row]])
            trained = np.ones(shape.row, dtype=np.uint8)
            trained[bounds[:-1]] = 0
            writer.add(
                Row(
                    tokens=random.integers(2, shape.vocabulary, shape.row),
                    trained=trained,
                    segments=np.diff(bounds),
                )
            )


def make_model_on(shape: Shape, device: Any, attention: str) -> Any:
    """Return a model of transformers with random weights in bf16, made on its device."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    with device:
        return AutoModelForCausalLM.from_config(
            shape.config(), dtype=torch.bfloat16, attn_implementation=attention
        )
