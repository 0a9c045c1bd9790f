"""Rehearses the export with a tiny model, before a device is held.

The tiny model has the architecture, the vocabulary, the tokenizer and all other files of the base
model, but one narrow layer with random weights. Its export takes the same steps on the same storage
as the export of the finished run: read a checkpoint, write weights, files and card, change
permissions, load everything back, generate text and rename the folder. Whatever fails there fails
here first.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from finetune_api.base import Object
from finetune_api.exit_codes import ExitCode
from finetune_api.progress import DataSummary, SourceSummary
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest, ManifestEntry
from finetune_trainer.checkpoint import store
from finetune_trainer.common.errors import TrainerError, one_line, reading
from finetune_trainer.data import prepared
from finetune_trainer.data.tokenize_block import Recipe
from finetune_trainer.export import metadata_files, model_export
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model.small_copy import (
    INNER_SIZES,
    head_size,
    keep_first_layers,
    narrow_width,
    recurrent_sizes,
)
from finetune_trainer.prepare.storage_checks import not_writable
from finetune_trainer.run_dir import fence, tensor_file
from finetune_trainer.run_dir.files import unfinished, write_atomic
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.run_dir.safetensors_header import SINGLE

_log = logging.getLogger(__name__)
_NAME = ".rehearsal-"  # of the folder
_DIGEST = "rehearsal"
_WIDTH = 16
_STEP = 1
_NEEDED = ("config.json", "tokenizer.json", SINGLE)  # no model loads without these


def run(config: RunConfig, paths: RunPaths, recipe: Recipe, advance: Callable[[], None]) -> None:
    """Export a tiny model in a folder of its own below the run's storage, and remove it.

    `recipe` is how the data will be tokenized. Raises TrainerError: 73 if storage does not allow a
    step, 64 if the model's files do not, with the name of the file if one alone is the cause.
    """
    _remove_abandoned(paths.storage, config.job_uid)
    folder = paths.storage / f"{_NAME}{config.job_uid}-{uuid4().hex}"
    tiny = RunPaths(
        model=folder / "model",
        storage=folder / "run",
        cache=folder / "cache",
        storage_uri=paths.storage_uri,
    )
    changed = config.replace(prepared_digest=_DIGEST, run_digest=_DIGEST, attempt=1)
    try:
        _make_run(changed, tiny, recipe, advance)
        _export(changed, tiny, recipe, advance)
    except OSError as error:
        raise not_writable(paths.storage_uri, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shrunk(config: Object, full: Any) -> Object:
    """Return a config.json of the same architecture with one narrow layer, or a few.

    `full` is the configuration as transformers reads it, with its defaults. The vocabulary stays,
    because the tokenizer must fit, and the size of a head, because settings of RoPE can depend on
    it.
    """
    known, small = full.to_dict(), dict(config)
    keep_first_layers(small, full.num_hidden_layers, _layers(known.get("layer_types") or []))
    small |= {
        "hidden_size": narrow_width(full, 1, max(_WIDTH, known.get("mamba_d_head") or 0)),
        "intermediate_size": _WIDTH,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": head_size(full),
    }
    small |= {key: _WIDTH for key in INNER_SIZES if config.get(key)}
    return small | recurrent_sizes(known | small)


def _layers(kinds: list[str]) -> int:
    """Return how many first layers have one with attention: else transformers cannot generate."""
    attend = [kind.endswith("attention") and not kind.startswith("linear") for kind in kinds]
    return attend.index(True) + 1 if any(attend) else 1


def _make_run(
    config: RunConfig, tiny: RunPaths, recipe: Recipe, advance: Callable[[], None]
) -> None:
    """Write a tiny base model, a checkpoint of it and the files of prepared data."""
    from transformers import AutoConfig

    base = recipe.model
    tiny.model.mkdir(parents=True)
    for file in metadata_files.copied(base):
        with reading(recipe.model_name):
            contents = file.read_bytes()
        copy = tiny.model / file.relative_to(base)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(contents)
    full = AutoConfig.from_pretrained(base, local_files_only=True)
    settings = shrunk(json.loads((base / "config.json").read_text()), full)
    (tiny.model / "config.json").write_text(json.dumps(settings))
    made = _random_model(tiny.model)
    dtype = model_export.DTYPES[model_folder.stored_dtype(base, recipe.model_name)]
    stored = _stored_weights(made, dtype)
    tensor_file.write(tiny.model / SINGLE, stored, {"format": "pt"}, advance)
    weights = {name: parameter.detach() for name, parameter in made.named_parameters()}
    _write_checkpoint(config, tiny, weights, advance)
    rows = tiny.prepared(_DIGEST)
    rows.mkdir(parents=True)
    (rows / prepared.CARD).write_text(_no_data(config).to_json())
    if recipe.template is not None:
        (rows / prepared.TEMPLATE).write_text(recipe.template, encoding="utf-8")


def _random_model(model: Path) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).float()


def _stored_weights(made: Any, dtype: Any) -> dict[str, Any]:
    """Return the tensors of the files of a model, under their names there."""
    from finetune_trainer.model.stored_layout import stored_buffers, stored_layout

    values = dict(made.named_parameters()) | stored_buffers(made)
    stored = {}
    for name, part in stored_layout(made).tensors.items():
        flat = values[part.source].detach().flatten()[part.offset :]
        stored[name] = flat[: math.prod(part.shape)].reshape(part.shape).to(dtype)
    return stored


def _write_checkpoint(
    config: RunConfig, tiny: RunPaths, weights: dict[str, Any], advance: Callable[[], None]
) -> None:
    folder = tiny.checkpoint(_STEP, fence.claim(tiny, config.job_uid, config.attempt))
    folder.mkdir(parents=True)
    file = folder / "rank-00000-of-00001.safetensors"
    masters = {f"{name}@0|master": tensor.flatten() for name, tensor in weights.items()}
    digest = tensor_file.write(file, masters, {"adamStep": "1"}, advance)
    manifest = Manifest(
        step=_STEP,
        rows_consumed=0,
        fence_epoch=1,
        attempt=config.attempt,
        job_uid=config.job_uid,
        run_digest=_DIGEST,
        world_size=1,
        zero_stage=1,
        creation_time=datetime.now(UTC),
        files=[ManifestEntry(path=file.name, size_bytes=file.stat().st_size, xxh3_128=digest)],
    )
    write_atomic(folder / store.MANIFEST, manifest.to_json())


def _no_data(config: RunConfig) -> DataSummary:
    """Return the summary of data that is not prepared yet, for the model card."""
    sources = [SourceSummary(source=one.source, rows=1, examples=1) for one in config.dataset.train]
    return DataSummary(
        examples=1, rows=1, tokens=1, trained_tokens=1, packing_efficiency=1, sources=sources
    )


def _export(config: RunConfig, tiny: RunPaths, recipe: Recipe, advance: Callable[[], None]) -> None:
    try:
        model_export.export(config, tiny, advance, epoch=1, final_step=_STEP)
    except TrainerError as error:
        if error.code == ExitCode.STORAGE_NOT_WRITABLE:
            raise
        raise _failed(error, _culprit(config, tiny, advance), recipe) from error
    except Exception as error:  # transformers and tokenizers raise exceptions of any type
        raise _failed(error, _culprit(config, tiny, advance), recipe) from error


def _failed(error: Exception, culprit: str | None, recipe: Recipe) -> TrainerError:
    """Return the error of a failed rehearsal. `culprit` is a file without which it succeeds."""
    if culprit is None:
        recipe.renderer()  # explains a tokenizer that cannot be read
        remedy = "copy the model again, or report this as a fault of the trainer"
    else:
        remedy = f"the cause is {culprit}: correct it, remove it or copy it again"
    return TrainerError(
        ExitCode.BAD_CONFIGURATION,
        f"{recipe.model_name}: the export was rehearsed with a tiny model that has all files of "
        f"this one except its weights, and failed ({one_line(error)}); {remedy}",
    )


def _culprit(config: RunConfig, tiny: RunPaths, advance: Callable[[], None]) -> str | None:
    """Return the name of a file without which the rehearsal succeeds."""
    for file in metadata_files.copied(tiny.model):
        if file.name in _NEEDED:
            continue
        aside = file.rename(tiny.storage / "aside")
        try:
            model_export.export(config, tiny, advance, epoch=1, final_step=_STEP)
        except Exception:  # then this file is not the cause
            continue
        else:
            return str(file.relative_to(tiny.model))
        finally:
            aside.rename(file)
    return None


def _remove_abandoned(storage: Path, job_uid: str) -> None:
    """Remove the folders that killed prepare pods left: of this job at once, of others later."""
    for folder, abandoned in unfinished(storage, f"{_NAME}*"):
        if abandoned or folder.name.startswith(f"{_NAME}{job_uid}-"):
            shutil.rmtree(folder, ignore_errors=True)
