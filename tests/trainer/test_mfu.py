"""The FLOPs that a step needs, compared with real models, and the peaks of devices."""

import numpy as np
import pytest
import torch

from finetune_trainer.data.prepared import Row, Rows, RowWriter
from finetune_trainer.training import mfu
from finetune_trainer.training.mfu import Utilisation

LAYERS, HEADS, SIZE = 3, 4, 16
SHAPE = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
}
PEAK = 1e12


@pytest.fixture
def rows(tmp_path) -> Rows:
    """Two rows: one with documents of 3 and 5 tokens, and one with a document of 8 tokens."""
    with RowWriter(tmp_path, "train") as writer:
        for segments in ([3, 5], [8]):
            tokens = np.zeros(8, dtype=np.uint32)
            trained = np.ones(8, dtype=np.uint8)
            writer.add(Row(tokens, trained, np.array(segments, dtype=np.uint32)))
    return Rows(tmp_path, "train")


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3", "Mistral"])
def test_a_token_needs_six_flops_per_weight(rows, kind):
    import transformers

    more = {"head_dim": SIZE * 2} if kind == "Qwen3" else {}
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **more)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    linear = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    head = linear.pop("lm_head")
    utilisation = Utilisation(model, rows, devices=1, peak=PEAK)
    assert utilisation.needed([], 1, 0) == 6 * sum(linear.values())
    assert utilisation.needed([], 0, 1) == 6 * head


def test_attention_counts_pairs_within_documents_only(rows):
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    utilisation = Utilisation(model, rows, devices=1, peak=PEAK)
    pairs = 3 * 3 + 5 * 5 + 8 * 8
    # Half of them (causal), two products of 2 FLOPs per element, three passes, heads, layers.
    assert utilisation.needed([0, 1], 0, 0) == pairs / 2 * 2 * 2 * 3 * HEADS * SIZE * LAYERS
    assert utilisation.needed([1], 0, 0) == 64 / 2 * 2 * 2 * 3 * HEADS * SIZE * LAYERS


def test_attention_with_a_window_counts_pairs_in_the_window_only(rows):
    import transformers

    shape = SHAPE | {"head_dim": SIZE, "sliding_window": 4, "num_hidden_layers": 6}
    with torch.device("meta"):  # five layers with a window, one without
        model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**shape))
    utilisation = Utilisation(model, rows, devices=1, peak=PEAK)
    full, windowed = 8 * 8, 2 * 8 * 4 - 4 * 4
    assert utilisation.needed([1], 0, 0) == 6 * HEADS * SIZE * (full + 5 * windowed)


def test_a_token_counts_the_experts_that_it_is_sent_to(rows):
    import transformers

    sizes = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    with torch.device("meta"):
        model = transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(**SHAPE, head_dim=SIZE, **sizes)
        )
    utilisation = Utilisation(model, rows, devices=1, peak=PEAK)
    attention = 64 * (2 * HEADS * SIZE + 2 * 2 * SIZE)
    assert utilisation.needed([], 1, 0) == 6 * LAYERS * (attention + 64 * 8 + 2 * 3 * 64 * 32)


def test_heads_may_have_two_sizes(rows):
    import transformers

    with torch.device("meta"):
        model = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(num_hidden_layers=6))
    assert Utilisation(model, rows, devices=1, peak=PEAK).needed([1], 8, 8) > 0


def test_utilisation_is_a_share_of_all_devices(rows):
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    utilisation = Utilisation(model, rows, devices=4, peak=PEAK)
    assert utilisation.share(4 * PEAK, 2.0) == 0.5


@pytest.mark.parametrize(
    ("name", "flops"),
    {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "NVIDIA H100 NVL": 835e12,
        "NVIDIA H200": 989e12,
        "NVIDIA GH200 480GB": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA A100 80GB PCIe": 312e12,
        "NVIDIA L40S": 362e12,
        "NVIDIA L4": 121e12,
        "AMD Instinct MI300X OAM": 1307e12,
        "NVIDIA GeForce RTX 4090": None,
        "NVIDIA H20": None,
        "": None,
    }.items(),
)
def test_the_peak_of_a_device_is_found_by_its_name(name, flops):
    assert mfu.peak(name) == flops


@pytest.mark.parametrize("bf16", [True, False])
def test_a_cpu_has_no_utilisation(rows, bf16):
    assert Utilisation.known(None, rows, 1, torch.device("cpu"), bf16=bf16) is None
