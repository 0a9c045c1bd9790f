"""What liger-kernel replaces in a model of transformers."""

import ast
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config
from transformers.models.llama import modeling_llama

from finetune_trainer.model import liger

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def code_of(function: Any) -> str:
    """Return the code of a function, without its name, decorators, annotations and docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list, tree.returns = [], None
    for argument in tree.args.args:
        argument.annotation = None
    if isinstance(tree.body[0], ast.Expr):
        del tree.body[0]
    return ast.unparse(tree)


@pytest.mark.parametrize("name", sorted(liger._NORMS | liger._MLPS))
def test_replaced_classes_compute_what_those_of_llama_compute(name: str):
    kind = "RMSNorm" if name.endswith("RMSNorm") else "MLP"
    family = {"Qwen3Moe": "qwen3_moe"}.get(name.removesuffix(kind), name.removesuffix(kind).lower())
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    own, reference = getattr(module, name), getattr(modeling_llama, f"Llama{kind}")
    assert code_of(own.forward) == code_of(reference.forward)


@pytest.mark.parametrize("name", sorted(liger._ROPES))
def test_replaced_functions_of_rope_compute_what_that_of_llama_computes(name: str):
    function = importlib.import_module(name).apply_rotary_pos_emb
    assert code_of(function) == code_of(modeling_llama.apply_rotary_pos_emb)


def model_of(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def test_parts_are_replaced_and_restored():
    plain_rope = modeling_llama.apply_rotary_pos_emb
    model = model_of(LlamaConfig(**SIZES))
    layer = model.model.layers[0]
    assert liger.parts_of(model) == {liger.NORM, liger.ROPE, liger.MLP}
    liger.apply(model, frozenset({liger.NORM, liger.ROPE, liger.MLP}))
    assert model.model.norm.forward.__func__ is liger.norm_forward
    assert layer.mlp.forward.__func__ is liger.mlp_forward
    assert modeling_llama.apply_rotary_pos_emb is liger.rope
    liger.apply(model, frozenset({liger.MLP}))
    assert "forward" not in vars(layer.input_layernorm)
    assert layer.mlp.forward.__func__ is liger.mlp_forward
    assert modeling_llama.apply_rotary_pos_emb is plain_rope
    liger.apply(model, frozenset())
    assert "forward" not in vars(layer.mlp)


def test_other_classes_and_activations_stay():
    assert liger.parts_of(model_of(Gemma2Config(**SIZES, head_dim=8))) == set()
    gelu = Qwen3Config(**SIZES, head_dim=8, hidden_act="gelu")
    assert liger.parts_of(model_of(gelu)) == {liger.NORM, liger.ROPE}


def test_plain_operations_are_those_of_transformers():
    torch.manual_seed(1)
    model = model_of(LlamaConfig(**SIZES))
    norm, mlp = model.model.norm, model.model.layers[0].mlp
    hidden = torch.randn(1, 5, 32)
    gate, up = mlp.gate_proj(hidden), mlp.up_proj(hidden)
    assert torch.equal(
        liger.plain_rms_norm(hidden, norm.weight, epsilon=norm.variance_epsilon), norm(hidden)
    )
    assert torch.equal(mlp.down_proj(liger.plain_swiglu(gate, up)), mlp(hidden))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed"
)
def test_kernels_agree_with_plain_operations_under_the_interpreter_of_triton():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.trainer.interpreted_kernels"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        timeout=240,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {liger.MLP: None, liger.ROPE: None, "layer": None}
