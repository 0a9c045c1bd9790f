"""The fused kernels of the trainer: how each is compared with plain operations, and how it is used.

`checks` lists the comparisons for a model. `Kernels` holds which kernels passed on every device of
the gang, and makes a model use these and no others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.func import functional_call

from finetune_trainer.model import attention, liger
from finetune_trainer.model.head import (
    LogitScale,
    linear_cross_entropy,
    plain_linear_cross_entropy,
)
from finetune_trainer.model.language_model import Batch, LanguageModel
from finetune_trainer.model.self_check import EVERYTHING, Check, Function
from finetune_trainer.model.small_copy import head_size, keep_first_layers

REGISTRY = f"{__name__}:checks"
ATTENTION, HEAD, ADAMW, LAYER = "attention", "loss head", "AdamW", "layer"
# On CPU, plain operations in bf16 differ by up to 1 % from those in fp32 (64 to 1,024 wide). Where
# a kernel uses a wrong element, the difference is of the size of the values.
_TOLERANCES = {torch.bfloat16: 0.03, torch.float32: 2e-3}  # TF32 rounds to 5e-4
_BOUNDS = [0, 37, 38, 200, 256]  # of short documents, one of which is a single token
_VOCABULARY = 32768  # entries at most
_WINDOW = 64  # tokens at most, so that a document exceeds it
_PARTS = frozenset({ATTENTION, HEAD, liger.NORM, liger.ROPE, liger.MLP})  # of a model


@dataclass(frozen=True)
class Kernels:
    """Which fused kernels are used."""

    used: frozenset[str]
    problems: dict[str, str] = field(default_factory=dict)
    """Why others are not used, by name."""

    @classmethod
    def without_gpu(cls) -> "Kernels":
        """Return what is used on a CPU, where results do not depend on the machine."""
        return cls(frozenset({HEAD}))

    @classmethod
    def passed(cls, results: dict[str, str | None]) -> "Kernels":
        """Return what may be used after a self-check with these results (`self_check.run`)."""
        problems = {name: text for name, text in results.items() if text is not None}
        used = set(results) - set(problems) - {LAYER}
        if LAYER in problems or EVERYTHING in problems:
            used &= {ADAMW}  # the parts of the model do not pass together
        return cls(frozenset(used), problems)

    @property
    def problem(self) -> str | None:
        """Which kernels are not used and why, in one line, or None."""
        lines = [f"{name} ({text})" for name, text in self.problems.items()]
        return f"slower, without fused {', '.join(lines)}" if lines else None

    def apply(self, model: LanguageModel) -> None:
        """Make a model use these kernels and no others."""
        model.model.set_attn_implementation(
            attention.implementation(model.forward_pass, fused=ATTENTION in self.used)
        )
        model.loss_head.is_fused = HEAD in self.used
        liger.apply(model.model, self.used)


def checks(folder: str, dtype_name: str, failed: set[str]) -> list[Check]:
    """Return the comparisons for a model. `failed` are those that have failed so far."""
    from transformers import AutoConfig

    attention.register()
    dtype = getattr(torch, dtype_name)
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    return [
        _attention(config, dtype),
        _head(config, dtype),
        _adamw(),
        *_liger(config, dtype),
        _layer(config, dtype, failed),
    ]


def _attention(config: Any, dtype: torch.dtype) -> Check:
    heads, shared, size = _heads(config)

    def inputs(device: torch.device) -> list[torch.Tensor]:
        tokens = _BOUNDS[-1]
        shapes = [(1, count, tokens, size) for count in (heads, shared, shared)]
        return [_random(shape, dtype, device) for shape in shapes]

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, fused: bool
    ) -> torch.Tensor:
        output, _ = attention.segments_attention(
            torch.nn.Module(),
            query,
            key,
            value,
            attention_mask=None,
            cu_seq_lens_q=_bounds(query.device),
            max_length_q=_longest(),
            fused=fused,
        )
        return output

    fused, plain = partial(attend, fused=True), partial(attend, fused=False)
    return Check(ATTENTION, fused, plain, inputs, _TOLERANCES[dtype])


def _head(config: Any, dtype: torch.dtype) -> Check:
    vocabulary, tokens = min(config.vocab_size, _VOCABULARY), 2500  # two chunks of the largest one

    def inputs(device: torch.device) -> list[torch.Tensor]:
        return [
            _random((tokens, config.hidden_size), dtype, device),
            0.02 * _random((vocabulary, config.hidden_size), dtype, device),
            (torch.arange(tokens, device=device) * 7919) % vocabulary,
        ]

    scale = LogitScale.of(config)
    fused = partial(linear_cross_entropy, scale=scale)
    plain = partial(plain_linear_cross_entropy, scale=scale)
    return Check(HEAD, fused, plain, inputs, _TOLERANCES[dtype])


def _adamw() -> Check:
    """Return the comparison of three steps, for weights on the device and on the host."""

    def inputs(device: torch.device) -> list[torch.Tensor]:
        return [_random((100, 1001), torch.float32, device) for _ in range(4)]

    def steps(weights: torch.Tensor, *gradients: torch.Tensor, fused: bool) -> Any:
        moved = []
        for device in (weights.device, torch.device("cpu")):
            parameter = weights.detach().to(device, copy=True)
            optimizer = torch.optim.AdamW([parameter], lr=1e-2, fused=fused)
            for gradient in gradients:
                parameter.grad = gradient.detach().to(device)
                optimizer.step()
            moved.append(parameter - weights.detach().to(device))
        return tuple(moved)

    return Check(ADAMW, partial(steps, fused=True), partial(steps, fused=False), inputs, 1e-3)


def _liger(config: Any, dtype: torch.dtype) -> list[Check]:
    """Return the comparisons of what liger-kernel replaces in this model, if it is installed."""
    if not liger.is_installed():
        return []
    tokens, heads, shared, size = _BOUNDS[-1], *_heads(config)
    epsilon = getattr(config, "rms_norm_eps", 1e-6)

    def inputs(*shapes: tuple[int, ...]) -> Callable[[torch.device], list[torch.Tensor]]:
        return lambda device: [_random(shape, dtype, device) for shape in shapes]

    def rotated(
        query: torch.Tensor, key: torch.Tensor, positions: torch.Tensor, *, function: Function
    ) -> Any:
        half = positions[:, None] * torch.linspace(0, 1, size // 2, device=query.device)
        angles = torch.cat([half, half], dim=1)[None]
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return function(query.transpose(1, 2), key.transpose(1, 2), cos, sin)

    def rope_inputs(device: torch.device) -> list[torch.Tensor]:
        return [
            _random((1, tokens, heads, size), dtype, device),
            _random((1, tokens, shared, size), dtype, device),
            torch.arange(tokens, device=device),
        ]

    rows = (1, tokens, config.hidden_size)
    inner = (1, tokens, getattr(config, "intermediate_size", None) or config.hidden_size)
    found = [
        Check(
            liger.NORM,
            partial(liger.rms_norm, epsilon=epsilon),
            partial(liger.plain_rms_norm, epsilon=epsilon),
            inputs(rows, rows[-1:]),
            _TOLERANCES[dtype],
        ),
        Check(
            liger.MLP, liger.swiglu, liger.plain_swiglu, inputs(inner, inner), _TOLERANCES[dtype]
        ),
        Check(
            liger.ROPE,
            partial(rotated, function=liger.rope),
            partial(rotated, function=liger.plain_rope),
            rope_inputs,
            _TOLERANCES[dtype],
        ),
    ]
    parts = liger.parts_of(_model(_one_layer(config), dtype, torch.device("meta")).model)
    return [check for check in found if check.name in parts]


def _layer(config: Any, dtype: torch.dtype, failed: set[str]) -> Check:
    """Return the comparison of a model of one layer with its own shapes, and all kernels in it.

    Its inputs are its parameters.
    """
    small = _one_layer(config)

    def loss(kernels: Kernels, *parameters: torch.Tensor) -> Any:
        model = _model(small, dtype, parameters[0].device)
        kernels.apply(model)
        names = [name for name, _ in model.named_parameters()]
        batch = _batch(small.vocab_size, parameters[0].device)
        return functional_call(model, dict(zip(names, parameters, strict=True)), (batch,))

    def fused(*parameters: torch.Tensor) -> Any:
        return loss(Kernels(_available() - failed), *parameters)

    return Check(
        LAYER,
        fused,
        lambda *parameters: loss(Kernels(frozenset()), *parameters),
        lambda device: [p.detach() for p in _model(small, dtype, device).parameters()],
        _TOLERANCES[dtype],
    )


def _available() -> frozenset[str]:
    return _PARTS if liger.is_installed() else frozenset({ATTENTION, HEAD})


def _model(config: Any, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """Return a model with random weights, the same each time."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    with device:
        made = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention.NAME
        )
    return LanguageModel(made)


def _heads(config: Any) -> tuple[int, int, int]:
    """Return the number of heads, of those of keys and values, and the size of one."""
    heads, shared = config.num_attention_heads, config.to_dict().get("num_key_value_heads")
    return heads, shared or heads, head_size(config)


def _one_layer(config: Any) -> Any:
    """Return the configuration with its first layer, and with a small vocabulary and window."""
    values = config.to_dict()
    keep_first_layers(values, config.num_hidden_layers, 1)
    for key in ("vocab_size", "vocab_size_per_layer_input"):
        if key in values:
            values[key] = min(values[key], 1024)
    values |= {key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if values.get("sliding_window"):
        values["sliding_window"] = min(values["sliding_window"], _WINDOW)
    return type(config).from_dict(values)


def _batch(vocabulary: int, device: torch.device) -> Batch:
    """Return documents of which every token but the first carries loss."""
    tokens = (torch.arange(_BOUNDS[-1], device=device) * 7919) % vocabulary
    bounds = _bounds(device)
    lengths = bounds.diff().long()
    positions = torch.arange(len(tokens), device=device) - bounds[:-1].repeat_interleave(lengths)
    predicted = (positions > 0).nonzero()[:, 0]
    return Batch(
        tokens=tokens[None],
        positions=positions[None],
        bounds=bounds,
        longest=_longest(),
        predict=predicted - 1,
        targets=tokens[predicted],
    )


def _bounds(device: torch.device) -> torch.Tensor:
    return torch.tensor(_BOUNDS, dtype=torch.int32, device=device)


def _longest() -> int:
    return max(b - a for a, b in pairwise(_BOUNDS))


def _random(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.randn(shape).to(device, dtype)
