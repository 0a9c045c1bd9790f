"""The model as the engine uses it: it maps a micro-batch to a sum of token losses.

A micro-batch has no padding: its rows are concatenated, and documents are given by their lengths.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import ForwardPass
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.prepared import Row
from finetune_trainer.model import attention
from finetune_trainer.model.head import LogitScale, LossHead
from finetune_trainer.model.router_loss import RouterLoss


@dataclass(frozen=True)
class Batch:
    """The input of one forward pass, without padding."""

    tokens: torch.Tensor
    """[1, tokens] int64."""
    positions: torch.Tensor
    """[1, tokens] int64: position of each token in its document."""
    bounds: torch.Tensor
    """[documents + 1] int32: cumulative lengths of the documents."""
    longest: int
    """Number of tokens of the longest document."""
    predict: torch.Tensor
    """[trained] int64: indices of the tokens whose next token carries loss."""
    targets: torch.Tensor
    """[trained] int64: those next tokens."""


def make_batch(rows: list[Row], device: torch.device) -> Batch:
    """Return the tensors of some rows.

    No target crosses a boundary, because the first token of a document never carries loss.
    """
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.int64)
    trained = np.concatenate([row.trained for row in rows]).astype(bool)
    lengths = np.concatenate([row.segments for row in rows]).astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.arange(len(tokens)) - np.repeat(bounds[:-1], lengths)
    carries_loss = np.flatnonzero(trained)

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return Batch(
        tokens=tensor(tokens[None]),
        positions=tensor(positions[None]),
        bounds=tensor(bounds.astype(np.int32)),
        longest=int(lengths.max()),
        predict=tensor(carries_loss - 1),
        targets=tensor(tokens[carries_loss]),
    )


def check(config: Any, name: str) -> None:
    """Raise TrainerError (64) for settings that are not trained, whatever the architecture.

    Whether an architecture is computed exactly is decided in exactness.py.
    """
    for key, value in vars(config).items():
        if _is_random(key) and isinstance(value, int | float) and value:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{name}: {key} {value} is not supported; set it to 0.0 in config.json",
            )
    if getattr(config, "quantization_config", None) is not None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{name}: quantised weights (quantization_config in config.json) cannot be fine-tuned "
            "in full; use the original model",
        )


def _is_random(key: str) -> bool:
    """Return whether a field of config.json is the strength of dropout or noise in training."""
    random = "drop" in key or "jitter" in key
    return random and not key.startswith(("classifier_", "summary_"))  # parts without use here


class LanguageModel(torch.nn.Module):
    """A transformers model with the fused loss head. Parameter names start with `model.`."""

    def __init__(self, model: Any, forward_pass: ForwardPass = "Rows") -> None:
        super().__init__()
        self.model, self.forward_pass = model, forward_pass
        self.loss_head = LossHead(model.lm_head, LogitScale.of(model.config))
        self.router: RouterLoss | None = None
        """The loss of the routers of a mixture of experts, if it is trained on."""
        self.router_share = torch.zeros(())
        """What it added to the newest result of a forward pass in training."""

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the sum of cross-entropies of all trained tokens, an fp32 scalar in nats.

        In training, the loss of the routers is added to it.
        """
        if self.router is None or not self.training:
            return self._cross_entropy(self.hidden(batch), batch)
        output = self._output(batch, output_router_logits=True)
        loss = self._cross_entropy(output.last_hidden_state[0], batch)
        added = self.router(output.router_logits, batch.bounds, batch.positions, batch.predict)
        self.router_share = added.detach()
        return loss + added

    def _cross_entropy(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = self.loss_head(hidden.index_select(0, batch.predict), batch.targets)
        return loss

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Return the input of the head for every token, as [tokens, size]."""
        hidden: torch.Tensor = self._output(batch).last_hidden_state[0]
        return hidden

    def _output(self, batch: Batch, **options: Any) -> Any:
        return self.model.model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            use_cache=False,
            **self._bounds(batch),
            **options,
        )

    def _bounds(self, batch: Batch) -> dict[str, Any]:
        if self.forward_pass == "Rows":
            return {"cu_seq_lens_q": batch.bounds, "max_length_q": batch.longest}
        if len(batch.bounds) != 2:
            raise ValueError("this model is computed one document at a time")
        return {}

    def recompute_activations(self) -> None:
        """Keep only the inputs of layers, and recompute the rest in the backward pass."""
        with warnings.catch_warnings():
            # The older versions of transformers that we allow do not have the new name.
            warnings.simplefilter("ignore", FutureWarning)
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def names(self) -> dict[int, str]:
        """Return id(parameter) -> name in the transformers model. Tied parameters have one name."""
        return {id(parameter): name for name, parameter in self.model.named_parameters()}


def load(folder: Path, dtype: torch.dtype, forward_pass: ForwardPass = "Rows") -> LanguageModel:
    """Load a model folder. Raises TrainerError (64) if weights are missing or do not fit."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    attention.register()
    check(AutoConfig.from_pretrained(folder, local_files_only=True), str(folder))
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention.implementation(forward_pass),
        generation_config=GenerationConfig(),  # training needs none, and the base's may be refused
        local_files_only=True,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{folder}: {kind.replace('_', ' ')} {sorted(map(str, info[kind]))[:5]}; the "
                "weights do not belong to config.json",
            )
    return LanguageModel(model, forward_pass)
