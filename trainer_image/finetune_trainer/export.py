"""The finished model: a Hugging Face folder made from checkpoint files, loaded back and compared.

No process group, no device, no DeepSpeed: the fp32 master is read slice by slice, rounded to the
compute type, and written as the base model's files are laid out.
"""

import contextlib
import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from finetune_api.exit_codes import ExitCode
from finetune_api.progress import Output
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer import fence, finished, model, prepared, tensor_file
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.errors import TrainerError
from finetune_trainer.files import sync_folder, write_atomic
from finetune_trainer.model_card import model_card
from finetune_trainer.paths import RunPaths
from finetune_trainer.reporter import Reporter

_log = logging.getLogger(__name__)
_SHARD_BYTES = 5_000_000_000
_PARTIAL, _ASIDE = "final.tmp-", "final.old-"
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def run(config: RunConfig, paths: RunPaths, report: Reporter, epoch: int) -> Output:
    """Export the last step's checkpoint on behalf of the gang that holds `epoch`.

    TrainerError 79 when a newer gang owns the storage, 78 when the last checkpoint is damaged or
    the model does not load back as it was, 73 when storage cannot be written.
    """
    report.stage("Exporting")
    done = finished.read(paths, config.job_uid, config.run_digest or "")
    if done is not None:
        return done
    folder, manifest = _last_checkpoint(config, paths, report)
    dtype = torch.bfloat16 if config.training.precision == "BF16" else torch.float32
    partial = paths.storage / f"{_PARTIAL}{epoch}"  # ours alone: an older gang may still write
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        reader = CheckpointReader(folder, manifest)
        _write_weights(paths.model, reader, partial, dtype, report)
        _write_texts(config, paths, manifest, partial, dtype)
        _load_back(partial, reader, dtype, report)
        return _publish(config, paths, manifest, partial, epoch)
    except OSError as error:
        text = f"{config.checkpoints.storage}: the model could not be written ({error})"
        raise TrainerError(ExitCode.STORAGE_NOT_WRITABLE, text) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _last_checkpoint(config: RunConfig, paths: RunPaths, report: Reporter) -> tuple[Path, Manifest]:
    """That of the last step; an older one is a model that nobody asked for.

    Retryable: the next attempt resumes before the damage and trains the rest again.
    """
    newest = store.newest_valid(paths, config.run_digest or "", report.advance)
    last = config.plan.total_steps if config.plan else None
    if newest is None or newest[1].step != last:
        found = f"the newest valid one is of step {newest[1].step}" if newest else "there is none"
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"{config.checkpoints.storage}: the checkpoint of the last step ({last}) is damaged or "
            f"absent, {found}; the next attempt trains the rest again",
            reason="CheckpointDamaged",
        )
    return newest


def _write_weights(
    base: Path, reader: CheckpointReader, out: Path, dtype: torch.dtype, report: Reporter
) -> None:
    """Tensors in the base model's order, in shards of at most 5 GB."""
    shard: dict[str, torch.Tensor] = {}
    shards: list[dict[str, str]] = []
    size = total = 0
    known = set(reader.names())

    def flush() -> None:
        name = f"shard-{len(shards)}.safetensors"
        tensor_file.write(out / name, shard, {"format": "pt"}, report.advance)
        shards.append(dict.fromkeys(shard, name))
        shard.clear()

    for file in model.weight_files(base, str(base)):
        originals = load_file(str(file))
        for name, original in originals.items():
            if name not in known:
                # The head of a tied model, stored twice: untrained, it would undo the tie.
                continue
            tensor = _tensor(reader, name, original, dtype)
            if size + tensor.nbytes > _SHARD_BYTES and shard:
                flush()
                size = 0
            shard[name] = tensor.contiguous()
            size += tensor.nbytes
            total += tensor.nbytes
            known.discard(name)
            report.advance()
    flush()
    if known:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"trained parameters that the base model's files do not hold: {sorted(known)[:5]}",
        )
    _name_shards(out, shards, total)


def _tensor(
    reader: CheckpointReader, name: str, original: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    values = reader.read(name, "master", 0, original.numel())
    return values.reshape(original.shape).to(dtype)


def _name_shards(out: Path, shards: list[dict[str, str]], total: int) -> None:
    """One file, or numbered files with an index, as transformers names them."""
    if len(shards) == 1:
        (out / "shard-0.safetensors").rename(out / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (out / f"shard-{number - 1}.safetensors").rename(out / name)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_texts(
    config: RunConfig, paths: RunPaths, manifest: Manifest, out: Path, dtype: torch.dtype
) -> None:
    settings: dict[str, Any] = json.loads((paths.model / "config.json").read_text())
    settings.pop("torch_dtype", None)
    settings["dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(settings, indent=2))
    for name in _COPIED:
        if (paths.model / name).is_file():
            shutil.copyfile(paths.model / name, out / name)
    _write_template(out, prepared.chat_template(paths.prepared(config.prepared_digest or "")))
    (out / "README.md").write_text(model_card(config, manifest, paths))


def _write_template(out: Path, template: str | None) -> None:
    """The template that was trained with, in both places where readers look for one."""
    if template is None:
        return
    (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps(settings | {"chat_template": template}, indent=2, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")


def _load_back(
    folder: Path, reader: CheckpointReader, dtype: torch.dtype, report: Reporter
) -> None:
    """Plain transformers must load it, whole and equal, and it must be able to speak."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    wrong = [kind for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]]
    for name, parameter in loaded.named_parameters():
        expected = reader.read(name, "master", 0, parameter.numel()).to(dtype)
        if not torch.equal(parameter.detach().flatten(), expected):
            wrong.append(name)
        report.advance()
    if wrong:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"the exported model does not load back as it was trained: {wrong[:5]}",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = torch.tensor([tokenizer("Hello")["input_ids"]])
    with torch.no_grad():
        loaded.generate(tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)


def _publish(
    config: RunConfig, paths: RunPaths, manifest: Manifest, partial: Path, epoch: int
) -> Output:
    """Say that it is complete, then rename: `final` appears whole, and once."""
    size = 0
    for file in partial.iterdir():
        file.chmod(0o644)  # servers run under another user
        store.drop_from_cache(file)
        size += file.stat().st_size
    card = finished.ExportCard(
        job_uid=config.job_uid,
        run_digest=config.run_digest or "",
        step=manifest.step,
        size_bytes=size,
    )
    write_atomic(partial / finished.FILE, card.to_json())
    fence.check(paths, epoch, config.attempt)
    _replace(config, paths, partial, epoch)
    _sweep(paths, epoch)
    _log.info("exported step %d to %s (%d bytes)", manifest.step, paths.final, size)
    return Output(location=paths.uri(paths.final), size_bytes=size, verified=True)


def _replace(config: RunConfig, paths: RunPaths, partial: Path, epoch: int) -> None:
    """Put the model where it belongs, unless another gang of this run has meanwhile.

    NB: this process may have been paused since it read the fence, for longer than the next gang
    needs to publish. So nothing is deleted in place: what is there is moved aside first, looked at,
    and moved back when it is this run's finished model.
    """
    aside = paths.storage / f"{_ASIDE}{epoch}"
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        paths.final.rename(aside)
    whole = finished.is_complete(aside, config.job_uid, config.run_digest or "")
    try:
        (aside if whole else partial).rename(paths.final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Another gang was faster by a moment.
        if not finished.is_complete(paths.final, config.job_uid, config.run_digest or ""):
            raise
    sync_folder(paths.storage)
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(paths: RunPaths, epoch: int) -> None:
    """What older gangs left when they were killed."""
    for prefix in (_PARTIAL, _ASIDE):
        for left in paths.storage.glob(f"{prefix}*"):
            if int(left.name.removeprefix(prefix)) < epoch:
                shutil.rmtree(left, ignore_errors=True)
