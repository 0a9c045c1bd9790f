"""The auxiliary loss of the routers of a mixture of experts, which keeps all experts in use.

It is the one of transformers, for each document by itself: the number of experts x the sum over
experts of (how often the routers choose it, per token and layer) x (its mean probability). The
loss of a step is the mean over its trained tokens of cross-entropy + coefficient x the value of
the token's document. So it is the same however documents are packed into rows and rows are divided
among forward passes and ranks.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError


@dataclass(frozen=True)
class RouterLoss:
    """How the loss of the routers is weighted, and how many experts a token has."""

    coefficient: float
    chosen: int

    def __call__(
        self,
        logits: tuple[torch.Tensor, ...],
        bounds: torch.Tensor,
        positions: torch.Tensor,
        predict: torch.Tensor,
    ) -> torch.Tensor:
        """Return the sum over trained tokens of coefficient x the value of their documents.

        `logits` has one [tokens, experts] per layer. The others are fields of Batch.
        """
        tokens = torch.arange(positions.numel(), device=bounds.device)
        # [documents, tokens]: a product with it sums over documents, in the same order every time.
        member = ((tokens >= bounds[:-1, None]) & (tokens < bounds[1:, None])).float()
        chosen = probable = torch.zeros((), device=bounds.device)
        for layer in logits:
            probabilities = torch.softmax(layer.float(), dim=-1)
            best = torch.topk(probabilities, self.chosen, dim=-1).indices
            chosen = chosen + member @ torch.zeros_like(probabilities).scatter_(1, best, 1.0)
            probable = probable + member @ probabilities
        counted = len(logits) * member.sum(dim=1, keepdim=True)
        experts = logits[0].shape[-1]
        values = experts * (chosen / counted * probable / counted).sum(dim=1)
        return self.coefficient * (values * member[:, predict].sum(dim=1)).sum()


def router_loss(config: Any, name: str, wanted: float | None) -> RouterLoss | None:
    """Return the loss of the routers of a model, or None if it has none.

    `wanted` is training.routerAuxLoss. Without it, the coefficient is that of config.json. Raises
    TrainerError (64) for a coefficient that the model cannot use.
    """
    if not _has_loss(config):
        if wanted:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"training.routerAuxLoss {wanted:g}: in transformers, {name} "
                f"(model_type {config.model_type}) has no auxiliary loss of routers; remove the "
                "field, or set it to 0",
            )
        return None
    coefficient = config.router_aux_loss_coef if wanted is None else wanted
    return RouterLoss(coefficient, config.num_experts_per_tok) if coefficient else None


def _has_loss(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "router_aux_loss_coef", None) is None:
        return False
    if getattr(config, "num_local_experts", None) == 0:  # a model of this class without experts
        return False
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    return hasattr(module, "load_balancing_loss_func")
