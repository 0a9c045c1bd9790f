"""Loads a checkpoint of any world size into this rank's optimizer."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_api.storage import Manifest
from finetune_trainer.checkpoint.fragments import fragments, mismatches, optimizer_state, tensors
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.model.engine import Engine


def load(engine: Engine, folder: Path, manifest: Manifest, advance: Callable[[], None]) -> None:
    """Fill this rank's fragments from a checkpoint, and restore its random state if possible.

    `advance` is called for every slice that was read. Raises TrainerError (78) if the live weights
    do not match the master weights afterwards.
    """
    reader = CheckpointReader(folder, manifest)
    flats = {}
    for fragment in fragments(engine):
        flats[id(fragment.flat)] = fragment.flat
        for kind, target in tensors(engine, fragment).items():
            target.copy_(reader.read(fragment.name, kind, fragment.offset, fragment.numel))
            advance()
    for flat in flats.values():
        # NB: a separate step tensor for each: AdamW increments it once per flat tensor.
        optimizer_state(engine, flat)["step"].fill_(float(reader.adam_step))
    _refresh_weights(engine)
    assert_consistent(engine)
    if manifest.world_size == dist.get_world_size():
        _restore_random(folder / f"rng-{dist.get_rank():05d}.json")


def assert_consistent(engine: Engine) -> None:
    """Raise TrainerError (78) if a live weight differs from the rounded master weight.

    This happens if this version of DeepSpeed stores its slices differently.
    """
    wrong = mismatches(engine)
    if wrong:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"live weights differ from the master weights in {len(wrong)} parameters, first "
            f"{wrong[0]}; this trainer image must not be used with ZeRO stage {engine.stage}",
        )


def _refresh_weights(engine: Engine) -> None:
    optimizer = engine.optimizer
    if engine.stage < 3:
        optimizer.update_lp_params()
        return
    for index, master in enumerate(optimizer.fp32_partitioned_groups_flat):
        optimizer.fp16_partitioned_groups_flat[index].data.copy_(master.data)
        optimizer._unflatten_partitioned_parameters(index)


def _restore_random(path: Path) -> None:
    states = json.loads(path.read_text())

    def tensor(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

    torch.set_rng_state(tensor(states["cpu"]))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensor(states["cuda"]))
