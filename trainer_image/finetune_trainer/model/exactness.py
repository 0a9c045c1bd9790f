"""Decides whether this trainer computes a model exactly, before any weight is downloaded.

The architecture of the model is built small, with random weights, on CPU in fp32. Packed rows, as
they are trained, are compared with the same documents one by one in plain transformers: logits,
loss and every gradient. If they differ, this trainer computes the documents one by one as well. A
model that then differs too is refused with what differed.

The documents of this comparison are short. Windows of attention are shortened with them; scalings
of RoPE that change with the length are checked by their values.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import ForwardPass
from finetune_trainer.common.errors import TrainerError, one_line
from finetune_trainer.data.prepared import Row
from finetune_trainer.model import attention, small_copy
from finetune_trainer.model.fast_imports import model_classes
from finetune_trainer.model.folder import read_config
from finetune_trainer.model.language_model import LanguageModel, check, make_batch
from finetune_trainer.model.router_loss import router_loss
from finetune_trainer.model.stored_layout import UnknownLayoutError, stored_layout

_NAME = "finetune_exactness"  # the attention of the trainer, observed
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS = ((3, 11, 1, 7, 10), (9, 5))  # lengths of the documents of two rows
_TRAINED = 0.4  # share of tokens with loss
_TOLERANCE = 1e-4  # of the largest value of a tensor; sums in another order differ by about 1e-6
# The frequencies of these do not depend on the length of the input.
_FIXED_ROPE = ("default", "linear", "yarn", "llama3", "proportional")
_ORIGINAL = "original_max_position_embeddings"
_COMPARED = {
    "Rows": "packed rows differ from those of separate documents",
    "Document": "single documents differ from those in transformers",
}
_Tensors = dict[str, torch.Tensor | None]


class _DifferenceError(Exception):
    """What this trainer would compute otherwise than transformers."""


@dataclass
class _Observed:
    """What the layers of a model asked of their attention."""

    longest: int  # tokens of the longest possible document
    reasons: list[str] = field(default_factory=list)

    def note(self, reason: str | None) -> None:
        if reason and reason not in self.reasons:
            self.reasons.append(reason)


@dataclass(frozen=True)
class _Outcome:
    logits: torch.Tensor
    loss: torch.Tensor
    gradients: _Tensors


@dataclass(frozen=True)
class Finding:
    """What a forward pass may compute: rows, one document, or (None) nothing of this model."""

    forward_pass: ForwardPass | None
    problem: str = ""
    """What would be computed otherwise than in transformers, in packed rows or at all."""


def check_model(
    folder: Path,
    name: str,
    longest: int,
    advance: Callable[[], None],
    router_aux_loss: float | None = None,
) -> Finding:
    """Find how the model of this folder is computed exactly; TrainerError (64) if it is not.

    Only config.json is read. `longest` is the number of tokens of the longest possible document,
    `name` the name of the model in messages, `router_aux_loss` training.routerAuxLoss.
    """
    from transformers import AutoConfig

    read_config(folder, name)
    model_classes()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises exceptions of any type
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{name}: transformers cannot build this model as a causal language model "
            f"({one_line(error)}); correct config.json, or copy the model again. Models that need "
            "code from their repository (auto_map in config.json) are not supported",
        ) from error
    router_loss(config, name, router_aux_loss)  # raises an error for a model without routers
    return check_config(config, name, longest, advance)


def check_config(config: Any, name: str, longest: int, advance: Callable[[], None]) -> Finding:
    """Find how a model with this configuration is computed exactly; TrainerError (64) if not."""
    check(config, name)
    architecture = (getattr(config, "architectures", None) or ["(none)"])[0]
    found = examine(config, longest, advance)
    if found.forward_pass is None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{name}: the architecture {architecture} is not supported with this config.json: "
            f"{found.problem}; use a model of the table in docs/reference/models.md",
        )
    return found


def examine(config: Any, longest: int, advance: Callable[[], None]) -> Finding:
    """Find what is computed as in transformers: packed rows, single documents or neither."""
    packed = _difference(config, longest, advance, "Rows")
    if packed is None:
        return Finding("Rows")
    alone = _difference(config, longest, advance, "Document")
    return Finding("Document", packed) if alone is None else Finding(None, alone)


def _difference(
    config: Any, longest: int, advance: Callable[[], None], forward_pass: ForwardPass
) -> str | None:
    """Return what this trainer would compute otherwise than transformers, or None."""
    alone = forward_pass == "Document"
    try:
        _check_rope(config, longest, alone)
        model = _empty_model(config)
        _check_parts(model)
        small = small_copy.small_copy(config, small_copy.layers_needed(model), longrope=alone)
        small.output_router_logits = router_loss(small, "", None) is not None
        with _one_thread():
            plain = _build(small, "eager")
            small_copy.check_same_kinds(model, plain)
            _randomise(plain)
            observed = _Observed(longest)
            copied = _observed_copy(plain, small, observed, forward_pass)
            _compare(plain, LanguageModel(copied, forward_pass), observed, advance)
        stored_layout(plain)
    except (_DifferenceError, UnknownLayoutError, small_copy.UnknownPatternError) as problem:
        return str(problem)
    except TrainerError as error:
        return error.message
    except Exception as error:  # models of transformers raise exceptions of any type
        how = "" if alone else " as packed rows"
        return f"a small copy of it cannot be computed{how} ({one_line(error)})"
    return None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute in one thread: several only wait for each other, the tensors are so small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_rope(config: Any, longest: int, alone: bool) -> None:
    """Refuse scalings of RoPE that depend on the longest document of a micro-batch.

    A single document is scaled by its own length, except for kinds that depend on what came before.
    """
    for settings in small_copy.dictionaries(config.to_dict()):
        kind = settings.get("rope_type") or settings.get("type")
        if kind is None or kind in _FIXED_ROPE:
            continue
        # Phi-3 has this number in two places.
        beside = getattr(config, _ORIGINAL, None) or math.inf
        original = min(settings.get(_ORIGINAL) or 0, beside)
        if kind == "longrope" and (alone or longest <= original):
            continue
        limit = f" above {original} tokens" if kind == "longrope" else ""
        raise _DifferenceError(
            f"its RoPE ({kind}) depends on the length of the input{limit}, and rows have up to "
            f"{longest} tokens"
        )


def _empty_model(config: Any) -> Any:
    """Return the model in its real size, without memory."""
    if sorted(type(config).sub_configs):
        parts = ", ".join(sorted(type(config).sub_configs))
        raise _DifferenceError(f"it is made of several models ({parts})")
    with torch.device("meta"):
        model = _from_config(config)
    named = (getattr(config, "architectures", None) or [None])[0]
    if type(model).__name__ != named:
        raise _DifferenceError(
            f"config.json names {named}, and transformers builds {type(model).__name__} for "
            f"model_type {config.model_type}"
        )
    return model


def _from_config(config: Any, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(
        copy.deepcopy(config), trust_remote_code=False, dtype=torch.float32, **options
    )


def _check_parts(model: Any) -> None:
    """Refuse models that the trainer cannot take apart into layers and a linear head."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or not {_EMBEDDING, _HEAD} <= names:
        raise _DifferenceError(
            f"it has no {_EMBEDDING}, model.layers and {_HEAD}, of which the trainer builds its "
            "forward pass"
        )


def _build(config: Any, implementation: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _from_config(config, attn_implementation=implementation)


def _randomise(model: Any) -> None:
    """Draw weights with which every part matters: attention that is neither uniform nor one-hot."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * (1.5 / math.sqrt(parameter.shape[-1])))
            else:
                parameter.add_(noise * 0.2)
        model.get_input_embeddings().weight.mul_(math.sqrt(model.config.hidden_size))


def _observed_copy(plain: Any, config: Any, observed: _Observed, forward_pass: ForwardPass) -> Any:
    """Return the same model with the trainer's attention, whose arguments are observed."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def attend(module: torch.nn.Module, *tensors: Any, **options: Any) -> Any:
        if options.get("dropout"):
            observed.note(f"its attention has dropout ({options['dropout']})")
        if forward_pass == "Rows" and "cu_seq_lens_q" not in options:
            raise _DifferenceError(
                "its layers do not pass the bounds of documents on to their attention"
            )
        function = attention.FUNCTIONS[attention.implementation(forward_pass)]
        return function(module, *tensors, **options | {"dropout": 0.0})

    def mask(*_: Any, **__: Any) -> None:
        """Build no mask, as in training."""

    AttentionInterface.register(_NAME, attend)
    AttentionMaskInterface.register(_NAME, mask)
    copied = _build(config, _NAME)
    copied.load_state_dict(plain.state_dict())
    return copied


def _compare(
    plain: Any, model: LanguageModel, observed: _Observed, advance: Callable[[], None]
) -> None:
    rows = _rows()
    expected = _separate(plain.eval(), rows, advance)
    model.router = router_loss(plain.config, "", None)
    model.train()
    found = _trained(model, rows)
    advance()
    if observed.reasons:
        raise _DifferenceError("; ".join(observed.reasons))
    _check_equal(expected, found, model)
    model.recompute_activations()
    model.zero_grad()
    advance()
    _check_equal(expected, _trained(model, rows), model)


def _rows() -> list[Row]:
    generator = np.random.default_rng(3)

    def row(lengths: tuple[int, ...]) -> Row:
        size = sum(lengths)
        trained = (generator.random(size) < _TRAINED).astype(np.uint8)
        trained[np.cumsum([0, *lengths])[:-1]] = 0
        trained[-1] = 1
        tokens = generator.integers(0, small_copy.VOCABULARY, size).astype(np.uint32)
        return Row(tokens, trained, np.asarray(lengths, dtype=np.uint32))

    return [row(lengths) for lengths in _ROWS]


def _separate(model: Any, rows: list[Row], advance: Callable[[], None]) -> _Outcome:
    """Compute each document alone, with the loss that transformers itself trains on."""
    total, logits = torch.zeros(()), []
    for document in _documents(rows):
        tokens = torch.from_numpy(document.tokens.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(document.trained == 1), tokens, -100)
        count = int((labels[:, 1:] != -100).sum())
        output = model(input_ids=tokens, labels=labels if count else None, use_cache=False)
        logits.append(output.logits[0].detach())
        if count:
            loss = output.loss * count
            loss.backward()
            total += loss.detach()
        advance()
    return _Outcome(torch.cat(logits), total, _gradients(model))


def _documents(rows: list[Row]) -> list[Row]:
    return [document for row in rows for document in row.documents()]


def _trained(model: LanguageModel, rows: list[Row]) -> _Outcome:
    """Compute the rows as the trainer does: all at once, or each document in its own pass."""
    passes = [rows] if model.forward_pass == "Rows" else [[one] for one in _documents(rows)]
    total, logits = torch.zeros(()), []
    for batch in (make_batch(one, torch.device("cpu")) for one in passes):
        loss = model(batch)
        loss.backward()
        total += loss.detach()
        with torch.no_grad():
            logits.append(model.loss_head.logits(model.hidden(batch)))
    return _Outcome(torch.cat(logits), total, _gradients(model.model))


def _gradients(model: Any) -> _Tensors:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _check_equal(expected: _Outcome, found: _Outcome, model: LanguageModel) -> None:
    config = model.model.config
    if (error := _error(found.logits, expected.logits)) > _TOLERANCE:
        alone = model.forward_pass == "Document"
        causes = _named_causes(config, "logit", "softcap") if alone else ""
        raise _DifferenceError(
            f"logits of {_COMPARED[model.forward_pass]} by {error:.2g} of the largest{causes}"
        )
    if (error := _error(found.loss, expected.loss)) > _TOLERANCE:
        raise _DifferenceError(
            f"its loss in transformers is more than cross-entropy: they differ by {error:.2g} of "
            f"it{_named_causes(config, 'aux_loss')}"
        )
    for name, gradient in expected.gradients.items():
        other = found.gradients[name]
        if gradient is None or other is None:
            raise _DifferenceError(f"{name} has no gradient, so it would not be trained")
        if (error := _error(other, gradient)) > _TOLERANCE:
            raise _DifferenceError(
                f"the gradient of {name} differs by {error:.2g} of its largest element"
            )


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest element; infinite for NaN."""
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    return math.inf if math.isnan(error) else error


def _named_causes(config: Any, *parts: str) -> str:
    """Return the fields of config.json that may explain a difference."""
    named = [
        f"{key} {value}"
        for key, value in config.to_dict().items()
        if any(part in key for part in parts) and value not in (None, False, True, 1.0, 0.0)
    ]
    return f" (config.json has {', '.join(named)})" if named else ""
