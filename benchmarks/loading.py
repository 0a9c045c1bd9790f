"""Measures how long two ranks load a model for ZeRO-3, and how much host memory each needs.

`sliced` is what the trainer does: each rank reads its own slices. `whole` is the usual way: each
rank reads all of the model, and `deepspeed.zero.Init` partitions it then. The model is a random
Llama in bf16. Its files are in the page cache.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import ctypes
import gc
import os
import re
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

_WORLD = 2
_VOCABULARY = 32768


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--layers", type=int, default=9, help="layers (default: 9, 1.23 GB)")
    parser.add_argument("--width", type=int, default=2048, help="hidden size (default: 2048)")
    options = parser.parse_args()
    # As for a real model, freed tensors return their memory.
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": "29533", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # fmt: skip
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        mp.spawn(_make, (folder, options.layers, options.width), nprocs=1)
        size = sum(file.stat().st_size for file in (Path(folder) / "model").glob("*.safetensors"))
        print(f"model of {size / 1e9:.2f} GB, {_WORLD} ranks")
        for way in ("whole", "sliced"):
            mp.spawn(_load, (folder, way, size), nprocs=_WORLD)


def _make(_: int, folder: str, layers: int, width: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    for name, count, size in (("first", 1, 256), ("model", layers, width)):
        config = LlamaConfig(
            vocab_size=_VOCABULARY,
            hidden_size=size,
            intermediate_size=4 * size,
            num_hidden_layers=count,
            num_attention_heads=size // 64,
            num_key_value_heads=size // 256,
            tie_word_embeddings=True,
            dtype="bfloat16",
        )
        LlamaForCausalLM(config).save_pretrained(Path(folder) / name)


def _load(rank: int, folder: str, way: str, size: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(_WORLD)}
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    _model(Path(folder) / "first", way)  # imports, and makes what is made once
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    dist.barrier()
    resident, began, spent = _status("VmRSS"), time.perf_counter(), time.process_time()
    model = _model(Path(folder) / "model", way)
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    grown, held = (_status(field) - resident for field in ("VmHWM", "VmRSS"))
    dist.barrier()
    print(
        f"{way}, rank {rank}: {seconds:.2f} s ({1e9 * seconds / size:.2f} s/GB), "
        f"CPU {spent:.2f} s, peak +{grown / 1e6:.0f} MB, afterwards +{held / 1e6:.0f} MB"
    )
    del model


def _model(folder: Path, way: str) -> Any:
    import torch

    from finetune_api.progress import Plan
    from finetune_api.spec import Training
    from finetune_trainer.model import buckets, language_model, loading
    from finetune_trainer.model.engine import configuration
    from finetune_trainer.model.fast_imports import load_deepspeed

    deepspeed = load_deepspeed()
    deepspeed.init_distributed(verbose=False)
    torch.set_num_threads(1)
    training, plan = Training(), Plan(**_PLAN)
    if way == "sliced":
        return loading.load(folder, training, plan, lambda: None)
    model = language_model.load(folder, torch.bfloat16)
    config = configuration(training, plan, buckets.parameters_of(model))
    deepspeed.zero.Init(module=model, config_dict_or_path=config, dtype=torch.bfloat16)
    return model


_PLAN: dict[str, Any] = {
    "zero_stage": 3,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "global_batch_size": 2,
    "learning_rate": 1e-5,
    "total_steps": 1,
    "warmup_steps": 0,
    "activation_checkpointing": "Never",
    "offload": "None",
    "checkpoint_bytes": 0,
}


def _status(field: str) -> int:
    """Return a field of this process's status in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))


if __name__ == "__main__":
    main()
