"""Loads the weights that this rank needs: all of them for ZeRO 1 and 2, its slices for ZeRO-3.

For ZeRO-3, a model is built without values, and each rank then reads its slice of one parameter
after the other from the files. Thus a rank never has more in memory than its slices and one
parameter without values. transformers would put the whole model into the memory of every rank, and
DeepSpeed would move it to every device, before it is partitioned.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import ForwardPass, Plan
from finetune_api.spec import Training
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model import attention, buckets, folder, language_model
from finetune_trainer.model.engine import configuration
from finetune_trainer.model.fast_imports import load_deepspeed
from finetune_trainer.model.language_model import LanguageModel
from finetune_trainer.model.stored_layout import (
    StoredLayout,
    UnknownLayoutError,
    stored_buffers,
    stored_layout,
)
from finetune_trainer.model.stored_weights import StoredWeights

Advance = Callable[[], None]
_CHUNK = 1 << 22  # elements that are read at once
# Keys of `zero_optimization` with which DeepSpeed stores more of a parameter than the slice that
# was read, or not its values; and what they are when they are off.
_UNUSABLE: dict[str, tuple[Any, ...]] = {
    "mics_shard_size": (None, -1, 0),
    "zero_hpz_partition_size": (None, 0, 1),
    "zero_quantized_weights": (None, False),
}


def dtype_of(training: Training) -> torch.dtype:
    """Return the type of the weights that are trained."""
    return torch.bfloat16 if training.precision == "BF16" else torch.float32


def load(path: Path, training: Training, plan: Plan, advance: Advance) -> LanguageModel:
    """Load a model folder. `advance` is called for every piece that was read for ZeRO-3.

    Raises TrainerError (64) if weights are missing or do not fit.
    """
    dtype = dtype_of(training)
    if plan.zero_stage < 3:
        return language_model.load(path, dtype, plan.forward_pass or "Rows")
    stored = StoredWeights(path)
    model = _without_values(path, dtype, stored, plan.forward_pass or "Rows")
    config = configuration(training, plan, buckets.parameters_of(model))
    if keys := unusable_keys(config["zero_optimization"]):
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"deepspeed.config: {', '.join(keys)} cannot be used with ZeRO stage 3, because each "
            "rank reads only its own slices of the model; remove them",
        )
    layout = _layout(model, stored, str(path))
    folder.check_weights(layout, stored.tensors, str(path))
    stored.fill(stored_buffers(model.model), layout)
    _Slices(stored, layout, config, dtype, advance).replace_parameters(model)
    return model


def unusable_keys(zero_optimization: dict[str, Any]) -> list[str]:
    """Return the keys of DeepSpeed's configuration with which slices cannot be loaded (pure)."""
    return [
        f"zero_optimization.{key}"
        for key, off in _UNUSABLE.items()
        if zero_optimization.get(key) not in off
    ]


def _without_values(
    path: Path, dtype: torch.dtype, stored: StoredWeights, forward_pass: ForwardPass
) -> LanguageModel:
    """Return the model with its buffers, and with parameters on the device `meta`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention.register()
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    language_model.check(config, str(path))
    if not stored.head_equals_embedding():
        config.tie_word_embeddings = False  # as transformers decides when it loads such a model
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention.implementation(forward_pass)
        )
    model.tie_weights()  # the context has separated tied parameters
    return LanguageModel(model, forward_pass)


def _layout(model: LanguageModel, stored: StoredWeights, name: str) -> StoredLayout:
    try:
        return stored_layout(model.model, stored.tensors)
    except UnknownLayoutError as error:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION, f"{name}: {error}; this model is not supported"
        ) from error


class _Slices:
    """Makes the parameters of ZeRO-3, of which this rank has read its slices only."""

    def __init__(
        self,
        stored: StoredWeights,
        layout: StoredLayout,
        config: dict[str, Any],
        dtype: torch.dtype,
        advance: Advance,
    ) -> None:
        deepspeed = load_deepspeed()
        deepspeed.init_distributed(verbose=False)
        # Without a module, its linear function would not be used, and autograd would keep weights.
        self._zero = deepspeed.zero.Init(
            module=torch.nn.Module(), config_dict_or_path=config, dtype=dtype
        )
        self._stored, self._layout = stored, layout
        self._dtype, self._advance = dtype, advance

    def replace_parameters(self, model: LanguageModel) -> None:
        """Replace all parameters, and move the buffers to the device, as `initialize` would."""
        names, made = model.names(), dict[torch.nn.Parameter, torch.nn.Parameter]()
        for module in model.modules():
            for key, old in list(module.named_parameters(recurse=False)):
                if old not in made:
                    made[old] = self._parameter(names[id(old)], old.shape)
                setattr(module, key, made[old])
            for key, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, key, buffer.to(self._zero.local_device))

    def _parameter(self, name: str, shape: torch.Size) -> torch.nn.Parameter:
        """Return a partitioned parameter.

        DeepSpeed cuts this rank's slice out of a parameter in which only that slice has values.
        """
        whole = torch.empty(shape, dtype=self._dtype, device=self._zero.local_device)
        parameter: Any = torch.nn.Parameter(whole)
        self._zero._convert_to_deepspeed_param(parameter)
        size = -(-whole.numel() // parameter.ds_zero_partition_world_size)
        begin = min(size * parameter.ds_zero_partition_rank, whole.numel())
        end = min(begin + size, whole.numel())
        own = whole.view(-1)[begin:end]
        self._read(name, begin, own)
        parameter.partition()
        cut = parameter.ds_tensor[: len(own)].to(own.device)
        if not torch.equal(cut, own):
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"DeepSpeed has cut another slice out of {name} than was read for it; this trainer "
                "image must not be used with ZeRO stage 3",
            )
        made: torch.nn.Parameter = parameter
        return made

    def _read(self, name: str, begin: int, own: torch.Tensor) -> None:
        """Read elements of a parameter, from position `begin` on, from all tensors with them."""
        at = 0
        for stored, first, last in self._layout.pieces(name, begin, begin + len(own)):
            for position in range(first, last, _CHUNK):
                piece = self._stored.read(stored, position, min(position + _CHUNK, last))
                own[at : at + len(piece)].copy_(piece)
                at += len(piece)
                self._advance()
