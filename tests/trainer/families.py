"""Model families as published, and the page of docs/ that says which of them are supported.

`python -m tests.trainer.families` writes the page to standard output. The settings are those of
config.json of the named models that differ from the defaults of the class in transformers, as far
as they decide what is computed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_trainer.model import exactness

LONGEST = 4096  # training.sequenceLength for the table


@dataclass(frozen=True)
class Family:
    """One family: models of it, its model_type in transformers, and settings of config.json."""

    models: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The class of transformers that its config.json names."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        name: str = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.kind]
        return name

    def config(self) -> Any:
        """Return its configuration in real size."""
        from transformers import AutoConfig

        config = AutoConfig.for_model(self.kind, **self.settings)
        config.architectures = [self.architecture]
        return config

    def finding(self) -> "exactness.Finding":
        """Return what the check finds."""
        from finetune_trainer.common.errors import TrainerError
        from finetune_trainer.model import exactness, language_model

        config = self.config()
        try:
            language_model.check(config, "config.json")
        except TrainerError as error:
            return exactness.Finding(None, error.message)
        return exactness.examine(config, LONGEST, lambda: None)

    def row(self) -> str:
        """Return its row of the table, without figures that depend on the processor."""
        outcome = self.finding()
        problem = re.sub(r"by [\d.e+-]+ of", "by a part of", outcome.problem)
        found = {"Rows": "yes", "Document": f"one document at a time: {problem}"}.get(
            outcome.forward_pass or "", f"no: {problem}"
        )
        return f"| {self.models} | `{self.architecture}` | {found.replace('|', ' ')} |"


def _rope(**settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **settings}}


_LLAMA3 = _rope(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
_YARN = _rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)
_PHI4_MINI = _rope(
    rope_type="longrope",
    short_factor=[1.0] * 48,
    long_factor=[2.0] * 48,
    original_max_position_embeddings=4096,
)
_GRANITE_4 = {
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
    "position_embedding_type": "nope",
    "mamba_d_state": 128,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.015625,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}

FAMILIES = [
    Family("Llama 2, Yi, SmolLM2", "llama"),
    Family("Llama 3.1, 3.3, R1-Distill", "llama", {"num_key_value_heads": 8, **_LLAMA3}),
    Family("Llama with dynamic NTK", "llama", _rope(rope_type="dynamic", factor=2.0)),
    Family("Arcee AFM-4.5B", "arcee"),
    Family("Mistral 7B v0.1", "mistral", {"sliding_window": 4096}),
    Family("Mistral 7B v0.3, Nemo", "mistral", {"sliding_window": None}),
    Family("Ministral 8B", "ministral", {"head_dim": 128, "sliding_window": 32768}),
    Family("Ministral 3 (text)", "ministral3"),
    Family("Mixtral 8x7B", "mixtral"),
    Family("Qwen2.5", "qwen2", {"num_key_value_heads": 4}),
    Family(
        "Qwen2 with use_sliding_window",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 16},
    ),
    Family("Qwen2.5 with YaRN", "qwen2", {"num_key_value_heads": 4, **_YARN}),
    Family("Qwen3 dense", "qwen3", {"num_key_value_heads": 8}),
    Family("Qwen3 MoE", "qwen3_moe"),
    Family("Qwen3-Next", "qwen3_next"),
    Family("Qwen3.5 (text)", "qwen3_5_text"),
    Family("Phi-2", "phi"),
    Family("Phi-3, Phi-4", "phi3"),
    Family("Phi-4-mini", "phi3", {"num_key_value_heads": 8, **_PHI4_MINI}),
    Family("Phi-3.5-MoE", "phimoe"),
    Family("SmolLM3", "smollm3"),
    Family("OLMo", "olmo"),
    Family("OLMo 2", "olmo2"),
    Family("OLMo 3", "olmo3", {"sliding_window": 4096}),
    Family("OLMoE", "olmoe"),
    Family("GLM-4 9B (0414)", "glm4"),
    Family("GLM-4 9B", "glm"),
    Family("GLM-4.5", "glm4_moe"),
    Family("Gemma 1", "gemma"),
    Family("Gemma 2", "gemma2"),
    Family("Gemma 3 1B", "gemma3_text", {"sliding_window": 512}),
    Family("Gemma 3 4B and larger", "gemma3"),
    Family("Gemma 4 (text)", "gemma4_text"),
    Family(
        "Gemma 4 E2B (text)",
        "gemma4_text",
        {
            "num_hidden_layers": 35,
            "num_kv_shared_layers": 20,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
            "use_double_wide_mlp": True,
        },
    ),
    Family(
        "Granite 3",
        "granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.0078125,
            "residual_multiplier": 0.22,
            "logits_scaling": 16.0,
        },
    ),
    Family("Granite 4 H-Micro", "granitemoehybrid", _GRANITE_4 | {"num_local_experts": 0}),
    Family("Granite 4 H-Tiny, H-Small", "granitemoehybrid", _GRANITE_4),
    Family("Command-R", "cohere"),
    Family("Command-R7B", "cohere2"),
    Family("gpt-oss", "gpt_oss"),
    Family("Llama 4 (text)", "llama4_text"),
    Family("DeepSeek-V3, Kimi-K2", "deepseek_v3"),
    Family("DeepSeek-V2", "deepseek_v2", {"num_experts_per_tok": 6, "topk_group": 1, "n_group": 1}),
    Family("Seed-OSS", "seed_oss", {"attention_dropout": 0.1, "residual_dropout": 0.1}),
    Family("StarCoder2 without dropout", "starcoder2"),
    Family("StableLM 2", "stablelm"),
    Family("Nemotron 4, Minitron", "nemotron", {"head_dim": 128, "num_key_value_heads": 8}),
    Family("Nemotron-H", "nemotron_h"),
    Family("Falcon", "falcon"),
    Family("Falcon-H1", "falcon_h1"),
    Family("LFM2", "lfm2", {"num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}),
    Family("EXAONE 4", "exaone4"),
    Family("Apertus", "apertus"),
    Family("Helium", "helium"),
    Family("ERNIE 4.5", "ernie4_5"),
    Family("MiniMax-M2", "minimax_m2"),
    Family("GPT-2", "gpt2"),
    Family("GPT-NeoX, Pythia", "gpt_neox"),
    Family("Bloom", "bloom"),
    Family("Mamba 2", "mamba2"),
]

_PAGE = """# Models

<!-- Generated by `make families`; do not edit. -->

Whether a model can be trained is decided for its own config.json, not by its name. Preparation
builds its architecture small, on CPU and with random weights, before it downloads any weight. It
computes documents packed into rows, as they are trained, and the same documents one by one in
plain transformers, and compares logits, the loss and every gradient. If all are equal up to the
rounding of fp32, the model is trained with packed rows.

If not, as with layers that carry a state from one token to the next, the check is made once more
without packing. A model that is exact then is trained one document at a time: each forward pass is
one document of a row, and `status.plan.forwardPass` is `Document`. Rows, steps and the loss are the
same, but passes over short documents use a device badly. Packages with faster kernels for recurrent
layers (`mamba_ssm`, `causal_conv1d`, `flash-linear-attention`) are not in the image. `kubectl
finetune` shows which of the two it is.

All other jobs fail as `BadConfiguration`, and the message says what differs.

The table shows what this check finds with `training.sequenceLength` {longest}, for the defaults of
each class in transformers and the settings of the named models that decide what is computed. The
result can depend on the length, because some scalings of RoPE change with it. Each supported row is
also trained on CPU, stopped, resumed, exported and loaded in plain transformers by `make families`.

GPUs use other kernels for attention, which this check does not run. These kernels have windows and
sinks. They have neither soft-caps (Gemma 2) nor heads of more than 256 elements (some layers of
Gemma 4): that attention is computed in plain PyTorch, which is slower.

| models | architecture | supported |
| --- | --- | --- |
{rows}
"""


def page(rows: Iterable[str]) -> str:
    """Return the page with the table."""
    return _PAGE.format(longest=f"{LONGEST:,}", rows="\n".join(rows))


if __name__ == "__main__":
    print(page(family.row() for family in FAMILIES), end="")
