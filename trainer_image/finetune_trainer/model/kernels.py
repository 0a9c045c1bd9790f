"""The fused kernels of the trainer: how each is compared with plain operations, and how it is used.

`checks` lists the comparisons for a model. `Kernels` holds which kernels passed on every device of
the gang, and makes a model use these and no others.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.func import functional_call

from finetune_trainer.model import attention
from finetune_trainer.model.head import (
    LogitScale,
    linear_cross_entropy,
    plain_linear_cross_entropy,
)
from finetune_trainer.model.language_model import Batch, LanguageModel
from finetune_trainer.model.self_check import EVERYTHING, Check

REGISTRY = f"{__name__}:checks"
ATTENTION, HEAD, ADAMW, LAYER = "attention", "loss head", "AdamW", "layer"
# On CPU, plain operations in bf16 differ by up to 1 % from those in fp32 (64 to 1,024 wide). Where
# a kernel uses a wrong element, the difference is of the size of the values.
_TOLERANCES = {torch.bfloat16: 0.03, torch.float32: 2e-3}  # TF32 rounds to 5e-4
_BOUNDS = [0, 37, 38, 200, 256]  # of short documents, one of which is a single token
_VOCABULARY = 32768  # entries at most
_WINDOW = 64  # tokens at most, so that a document exceeds it
_PARTS = (ATTENTION, HEAD)  # of a model


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
            attention.NAME if ATTENTION in self.used else attention.PLAIN
        )
        model.loss_head.is_fused = HEAD in self.used


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
        _layer(config, dtype, failed),
    ]


def _attention(config: Any, dtype: torch.dtype) -> Check:
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads

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


def _layer(config: Any, dtype: torch.dtype, failed: set[str]) -> Check:
    """Return the comparison of a model of one layer with its own shapes, and all kernels in it.

    Its inputs are its parameters.
    """
    small = _one_layer(config)

    def make(device: torch.device) -> LanguageModel:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        with device:
            made = AutoModelForCausalLM.from_config(
                small, dtype=dtype, attn_implementation=attention.NAME
            )
        return LanguageModel(made)

    def loss(kernels: Kernels, *parameters: torch.Tensor) -> Any:
        model = make(parameters[0].device)
        kernels.apply(model)
        names = [name for name, _ in model.named_parameters()]
        batch = _batch(small.vocab_size, parameters[0].device)
        return functional_call(model, dict(zip(names, parameters, strict=True)), (batch,))

    def fused(*parameters: torch.Tensor) -> Any:
        return loss(Kernels(frozenset(_PARTS) - failed), *parameters)

    return Check(
        LAYER,
        fused,
        lambda *parameters: loss(Kernels(frozenset()), *parameters),
        lambda device: [parameter.detach() for parameter in make(device).parameters()],
        _TOLERANCES[dtype],
    )


def _one_layer(config: Any) -> Any:
    """Return the configuration with its first layer, and with a small vocabulary and window."""
    values = config.to_dict()
    for key, value in values.items():
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            values[key] = value[:1]
    values |= {"num_hidden_layers": 1, "vocab_size": min(config.vocab_size, 1024)}
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
