"""Fused RMSNorm, RoPE and SwiGLU of liger-kernel, for classes of transformers that it can replace.

Only classes whose code is that of Llama are replaced, which a test compares. Norms and MLPs are
replaced one instance at a time. RoPE is a function of the module of the model's classes.
"""

import importlib.util
import sys
from types import MethodType
from typing import Any

import torch
from torch.nn.functional import silu

NORM, ROPE, MLP = "RMSNorm", "RoPE", "SwiGLU"
FAMILIES = ("Llama", "Mistral", "Mixtral", "Phi3", "Qwen2", "Qwen3", "Qwen3Moe", "SmolLM3")
_NORMS = frozenset(f"{family}RMSNorm" for family in FAMILIES)
# Mixtral has no such class, and that of Phi3 has one matrix instead of two.
_MLPS = frozenset(f"{family}MLP" for family in FAMILIES) - {"MixtralMLP", "Phi3MLP"}
_ROPES = frozenset(
    f"transformers.models.{family}.modeling_{family}"
    for family in ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3")
)
_FUNCTION = "apply_rotary_pos_emb"
_ORIGINAL = "_finetune_original_rope"


def is_installed() -> bool:
    """Return whether liger-kernel is installed. It needs Triton, which torch has for GPUs only."""
    return all(importlib.util.find_spec(name) is not None for name in ("liger_kernel", "triton"))


def parts_of(model: torch.nn.Module) -> set[str]:
    """Return what liger-kernel can replace in a model of transformers."""
    found = set()
    for module in model.modules():
        if type(module).__name__ in _NORMS:
            found.add(NORM)
        if _is_swiglu(module):
            found.add(MLP)
    return found | ({ROPE} if type(model).__module__ in _ROPES else set())


def _is_swiglu(module: Any) -> bool:
    return type(module).__name__ in _MLPS and module.config.hidden_act in ("silu", "swish")


def apply(model: torch.nn.Module, used: frozenset[str]) -> None:
    """Replace these parts of a model of transformers, and none else of those that can be replaced.

    RoPE is replaced in all models of this class in the process.
    """
    for module in model.modules():
        if type(module).__name__ in _NORMS:
            _replace(module, norm_forward if NORM in used else None)
        if _is_swiglu(module):
            _replace(module, mlp_forward if MLP in used else None)
    if type(model).__module__ not in _ROPES:
        return
    code: Any = sys.modules[type(model).__module__]
    if not hasattr(code, _ORIGINAL):
        setattr(code, _ORIGINAL, getattr(code, _FUNCTION))
    setattr(code, _FUNCTION, rope if ROPE in used else getattr(code, _ORIGINAL))


def _replace(module: Any, forward: Any) -> None:
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = MethodType(forward, module)


def norm_forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Compute the `forward` of LlamaRMSNorm."""
    return rms_norm(hidden, module.weight, epsilon=module.variance_epsilon)


def mlp_forward(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Compute the `forward` of LlamaMLP."""
    inner: torch.Tensor = swiglu(module.gate_proj(hidden), module.up_proj(hidden))
    output: torch.Tensor = module.down_proj(inner)
    return output


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """Return the norm over the last dimension, by liger-kernel."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # No offset, the casts of Llama, and the gradient not in place of that of the output.
    output: torch.Tensor = LigerRMSNormFunction.apply(
        hidden, weight, epsilon, 0.0, "llama", False, None
    )
    return output


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) x up, by liger-kernel. Overwrites both in the backward pass."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    output: torch.Tensor = LigerSiLUMulFunction.apply(gate, up, 1.0, 1.0)
    return output


def rope(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    unsqueeze_dim: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query and key with their positions, by liger-kernel. Overwrites both."""
    from liger_kernel.ops.rope import LigerRopeFunction

    rotated: tuple[torch.Tensor, torch.Tensor] = LigerRopeFunction.apply(
        query, key, cos, sin, None, unsqueeze_dim
    )
    return rotated


def plain_rms_norm(hidden: torch.Tensor, weight: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """Return what LlamaRMSNorm does."""
    values = hidden.float()
    scale = torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * (values * scale).to(hidden.dtype)


def plain_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return what LlamaMLP does between its matrices."""
    return silu(gate) * up


def plain_rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what transformers does for Llama."""
    from transformers.models.llama.modeling_llama import rotate_half

    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
