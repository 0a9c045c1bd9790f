"""Measures what the memory and the speed of a model depend on, without its weights.

The model is built with tensors of the device `meta`, which have a shape and no values, and runs
once over one row. What its operations save for the backward pass is counted.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from finetune_api.memory import ModelFacts
from finetune_api.spec import Training
from finetune_trainer.common.errors import one_line
from finetune_trainer.model.experts import expert_count, weights_of_a_token
from finetune_trainer.model.fast_imports import model_classes
from finetune_trainer.model.small_copy import head_size

_ATTENTION = "finetune_measured"
_log = logging.getLogger(__name__)


def of_folder(folder: Path, training: Training) -> ModelFacts | None:
    """Return the facts of the model in a folder, for the rows and the precision of a training."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    dtype = torch.bfloat16 if training.precision == "BF16" else torch.float32
    return measure(config, training.sequence_length, dtype)


def measure(config: Any, tokens: int, dtype: torch.dtype) -> ModelFacts | None:
    """Return the facts of the model with a configuration of transformers, for rows of `tokens`.

    Returns None for a model whose forward pass depends on values, which such tensors do not have.
    """
    try:
        with torch.device("meta"):
            model = _build(config, dtype)
            saved = _saved_bytes(model, tokens)
    except Exception as error:  # any operation without a variant for such tensors
        _log.warning("the memory of this model could not be measured: %s", one_line(error))
        return None
    layers = model.model.layers
    text = model.config.get_text_config()
    return ModelFacts(
        layers=len(layers),
        hidden=text.hidden_size,
        vocabulary=model.get_input_embeddings().weight.shape[0],
        layer_parameters=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
        largest_parameter=max(p.numel() for p in model.parameters()),
        active_parameters=round(sum(weights_of_a_token(model))),
        attention_width=len(layers) * text.num_attention_heads * head_size(text),
        row_tokens=tokens,
        layer_bytes=math.ceil(saved / len(layers)),
    )


def _build(config: Any, dtype: torch.dtype) -> Any:
    model_classes()
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(_ATTENTION, _attention)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=_ATTENTION)
    if any(expert_count(name, module) for name, module in model.named_modules()):
        # The other implementations loop over experts that were chosen, or copy their weights.
        model.set_experts_implementation("grouped_mm")
    return model


def _saved_bytes(model: Any, tokens: int) -> int:
    """Return the bytes of all different tensors that a forward pass over one row saves."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            saved[storage._cdata] = storage  # kept, so that no other one has this address
        return tensor

    row = torch.zeros(1, tokens, dtype=torch.long)
    no_mask = torch.empty(1, 1, 1, 1)  # a mask of four dimensions is not replaced by another one
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.model(input_ids=row, attention_mask=no_mask, use_cache=False)
    return sum(int(storage.nbytes()) for storage in saved.values())


class _SavedByAttention(torch.autograd.Function):
    """Saves what fused attention saves.

    On `meta`, torch's own function would save the complete matrix of scores.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        _, heads, tokens, _ = query.shape
        output = query.new_empty(1, tokens, heads, value.shape[-1])
        log_sum = query.new_empty(heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sum)
        return output


def _attention(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    output: torch.Tensor = _SavedByAttention.apply(query, key, value)
    return output, None
