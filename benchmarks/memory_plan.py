"""Compare the memory plan with what DeepSpeed allocates: `python -m benchmarks.memory_plan`.

Two ranks train a small model on CPU at every stage, in bf16 and fp32, with and without offload.
After the last micro-batch of a step, all tensors of rank 0 are counted by kind.
"""

import gc
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from finetune_api import memory
from finetune_api.memory import Offload, Setting
from finetune_api.progress import Plan
from finetune_api.spec import Training
from finetune_trainer.checkpoint import fragments
from finetune_trainer.data.prepared import Row
from finetune_trainer.model import attention
from finetune_trainer.model.engine import Engine
from finetune_trainer.model.language_model import LanguageModel, make_batch

WORLD = 2
_TOKENS = 64
# Every layer's matrices exceed ZeRO-3's threshold of 1e5 elements, below which weights are not
# partitioned.
_SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Case:
    """One way to distribute the training."""

    stage: int
    offload: Offload
    precision: str

    def __str__(self) -> str:
        return f"stage {self.stage}, {self.precision}, offload {self.offload}"


CASES = [
    Case(stage, offload, precision)
    for precision in ("BF16", "FP32")
    for offload, least in memory.LEAST_STAGE.items()
    for stage in range(least, 4)
]


@dataclass(frozen=True)
class Found:
    """Bytes by kind, as planned for all memories together, and as allocated on rank 0."""

    case: str
    parameters: int
    planned: dict[str, int]
    allocated: dict[str, int]

    @property
    def error(self) -> float:
        """The relative error of the sum of all kinds."""
        return sum(self.planned.values()) / sum(self.allocated.values()) - 1


def measure(cases: list[Case]) -> list[Found]:
    """Return what the plan says and what was allocated, for each case."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        mp.spawn(_rank, args=(cases, str(file)), nprocs=WORLD)
        return [Found(**found) for found in json.loads(file.read_text())]


def _rank(rank: int, cases: list[Case], file: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": WORLD}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    store = f"file://{file}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    found = [_case(case) for case in cases]
    if rank == 0:
        Path(file).write_text(json.dumps([asdict(one) for one in found]))
    dist.barrier()
    os._exit(0)  # teardown of a process group may abort


def _case(case: Case) -> Found:
    from transformers import AutoModelForCausalLM, LlamaConfig

    attention.register()
    dtype = torch.bfloat16 if case.precision == "BF16" else torch.float32
    made: Any = AutoModelForCausalLM.from_config(
        LlamaConfig(**_SHAPE), dtype=dtype, attn_implementation=attention.NAME
    )
    parameters = sum(p.numel() for p in made.parameters())
    training = Training.model_validate({"precision": case.precision, "sequenceLength": _TOKENS})
    plan = Plan(
        zero_stage=case.stage,
        micro_batch_size=1,
        gradient_accumulation_steps=2,
        global_batch_size=2 * WORLD,
        learning_rate=1e-5,
        total_steps=2,
        warmup_steps=0,
        offload=case.offload,
        checkpoint_bytes=12 * parameters,
    )
    own = {parameter.untyped_storage()._cdata for parameter in made.parameters()}
    # The storages are kept, so that no new one gets the address of an old one.
    earlier = {s._cdata: s for s in (tensor.untyped_storage() for tensor in _tensors())}
    before = {address: storage for address, storage in earlier.items() if address not in own}
    del earlier
    engine = Engine(LanguageModel(made), training, plan)
    trained = np.arange(_TOKENS) > 0
    row = Row(tokens=np.arange(_TOKENS), trained=trained, segments=np.array([_TOKENS]))
    batch = make_batch([row], torch.device("cpu"))
    for step in range(2):
        for _ in range(plan.gradient_accumulation_steps):
            engine.backward(batch, 1 / _TOKENS)
        if step == 1:
            allocated = _allocated(engine, before)
        engine.step(1e-5)
    engine.deepspeed.destroy()
    setting = _setting(case, training)
    return Found(str(case), parameters, _planned(parameters, setting), allocated)


def _setting(case: Case, training: Training) -> Setting:
    return Setting(
        world=WORLD,
        devices_per_worker=WORLD,
        zero_stage=case.stage,
        micro_batch_size=1,
        recompute="Never",
        offload=case.offload,
        weight_bytes=2 if case.precision == "BF16" else 4,
        state_bytes=training.optimizer.state_bytes,
    )


def _planned(parameters: int, setting: Setting) -> dict[str, int]:
    """Return the states of a device and of the host together, which are one memory here."""
    found = memory.state_bytes(parameters, setting)
    for kind, size in memory.offloaded_bytes(parameters, setting).items():
        found[kind] += size
    if setting.weight_bytes == 4 and setting.zero_stage < 3:
        found["masters"] = 0  # they are the weights, on CPU also with an offload
    buckets = memory.transfer_elements(_SHAPE["vocab_size"] * _SHAPE["hidden_size"], setting)
    if setting.zero_stage == 3 or (setting.zero_stage == 1 and setting.weight_bytes == 4):
        buckets += memory.bucket_elements(parameters)
    return found | {"buckets": buckets * setting.weight_bytes}


def _allocated(engine: Any, before: Container[int]) -> dict[str, int]:
    """Return the bytes of all tensors that were made since, by kind."""
    gc.collect()
    sizes: dict[int, int] = {}
    for tensor in _tensors():
        storage = tensor.untyped_storage()
        if storage._cdata not in before:
            sizes[storage._cdata] = storage.nbytes()
    states = engine.optimizer.optimizer.state.values()
    kinds = {
        "moments": [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")],
        "weights": [
            found
            for parameter in engine.model.parameters()
            for found in (parameter, getattr(parameter, "ds_tensor", None))
            if found is not None
        ],
        "masters": [fragment.flat for fragment in fragments.fragments(engine)],
    }
    found = {}
    for kind, tensors in kinds.items():
        own = {tensor.untyped_storage()._cdata for tensor in tensors}
        found[kind] = sum(sizes.pop(storage, 0) for storage in own)
    return found | {"gradients and buckets": sum(sizes.values())}


def _tensors() -> Iterator[torch.Tensor]:
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.device.type == "cpu":
            yield found
            if found.is_leaf and found.grad is not None:
                yield found.grad  # Python may have no object of it


def main() -> None:
    """Print a table of all cases."""
    print("| case | planned | allocated | error |\n|---|---|---|---|")
    for found in measure(CASES):
        planned, allocated = (
            sum(sizes.values()) / found.parameters for sizes in (found.planned, found.allocated)
        )
        print(f"| {found.case} | {planned:.3f} | {allocated:.3f} | {100 * found.error:+.2f} % |")


if __name__ == "__main__":
    main()
