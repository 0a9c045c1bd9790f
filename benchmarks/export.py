"""Measures memory and time of the export at two sizes: `python benchmarks/export.py`.

Makes a base model and a checkpoint of four ranks with random weights, using the trainer's own
writer and layout. Then exports it in separate processes, which read their memory from /proc:

  weights  only the shards: slices of the fp32 master weights, rounded and written
  export   everything: read the checkpoint, write shards and text files, load with transformers

Anonymous memory belongs to the process. Mapped pages of files, such as the model that transformers
loads, belong to the page cache, which the kernel can reclaim.
"""

import sys

if sys.path[0].endswith("/benchmarks"):
    # If run as a file, this folder would hide the `operator` module of the standard library.
    sys.path[0] = sys.path[0].removesuffix("/benchmarks")

import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import xxhash

from finetune_api.progress import DataSummary, Plan
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest, ManifestEntry
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.common.reporter import ChannelReporter
from finetune_trainer.export import model_export, weights
from finetune_trainer.export.weights import contents_of
from finetune_trainer.model import folder as model_folder
from finetune_trainer.run_dir import fence, tensor_file
from finetune_trainer.run_dir.paths import RunPaths

# Millions of parameters -> hidden size, MLP size, layers, heads, key-value heads (Llama, tied).
SHAPES = {135: (576, 1536, 30, 9, 3), 540: (1152, 3072, 31, 18, 6)}
VOCABULARY, RANKS = 49152, 4
KINDS = ("master", "exp_avg", "exp_avg_sq")
MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sizes", type=int, nargs="+", default=[135, 540], choices=SHAPES)
    parser.add_argument("--folder", type=Path, help="folder with space for 14 bytes per parameter")
    parser.add_argument("--part", choices=("weights", "export"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.folder)))
        return 0
    print("MiB: anonymous memory at the start and at its peak, peak of all resident memory")
    print("| parameters | part | seconds | at start | anonymous | resident | output |")
    print("|---|---|---|---|---|---|---|")
    for size in options.sizes:
        folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="export-"))
        try:
            parameters = make(folder, size)
            for part in ("weights", "export"):
                print(f"| {parameters / 1e6:.0f}M | {part} | {row(part, folder)} |", flush=True)
        finally:
            shutil.rmtree(folder)
    return 0


def row(part: str, folder: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.export", "--part", part, "--folder", str(folder)]
    env = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    found = json.loads(done.stdout.splitlines()[-1])
    names = ("start", "anonymous", "all", "output")
    return f"{found['seconds']:.1f} | " + " | ".join(f"{found[name]:.0f}" for name in names)


def config(folder: Path) -> RunConfig:
    plan = Plan(
        zero_stage=2,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        global_batch_size=RANKS,
        learning_rate=1e-5,
        total_steps=1,
        warmup_steps=0,
        checkpoint_bytes=0,
    )
    values: dict[str, Any] = {
        "job_name": "export",
        "job_namespace": "default",
        "job_uid": "uid",
        "role": "worker",
        "attempt": 1,
        "model": {"source": "pvc://w/model"},
        "dataset": {"train": [{"source": "pvc://w/data.jsonl"}]},
        "training": {},
        "checkpoints": {"storage": "pvc://w/run"},
        "mounts": {"w": str(folder)},
        "plan": plan,
        "prepared_digest": "data",
        "run_digest": "run",
    }
    return RunConfig.model_validate(values)


def make(folder: Path, size: int) -> int:
    """Make base model, checkpoint and prepared data; return the number of parameters."""
    run = config(folder)
    paths = RunPaths.of(run)
    paths.storage.mkdir(parents=True)
    make_base(paths.model, size)
    shapes = model_folder.parameters(paths.model, "model")
    entries = [tensor_file.Entry(n, tuple(s), torch.bfloat16) for n, s in shapes.items()]
    tensor_file.write_pieces(
        paths.model / "model.safetensors",
        entries,
        (torch.zeros(entry.numel, dtype=torch.bfloat16) for entry in entries),
        {"format": "pt"},
        lambda: None,
        xxhash.xxh3_128(),
    )
    make_checkpoint(paths, entries)
    summary = DataSummary(examples=1, rows=1, tokens=1, trained_tokens=1, packing_efficiency=1)
    paths.prepared("data").mkdir(parents=True)
    (paths.prepared("data") / "card.json").write_text(summary.to_json())
    fence.claim(paths, run.job_uid, run.attempt)
    return sum(entry.numel for entry in entries)


def make_base(folder: Path, size: int) -> None:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    hidden, mlp, layers, heads, groups = SHAPES[size]
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2, "Hello": 3}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(tokens, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
    )
    fast.save_pretrained(folder)


def make_checkpoint(paths: RunPaths, entries: list[tensor_file.Entry]) -> None:
    """Write a checkpoint in which every parameter is split evenly over the ranks, as by ZeRO-3."""
    folder = paths.checkpoint(1, 1)
    folder.mkdir(parents=True)
    files = []
    for rank in range(RANKS):
        path = folder / f"rank-{rank:05d}-of-{RANKS:05d}.safetensors"
        cuts = [(e.name, rank * e.numel // RANKS, (rank + 1) * e.numel // RANKS) for e in entries]
        slices = [
            tensor_file.Entry(f"{name}@{begin}|{kind}", (end - begin,), torch.float32)
            for name, begin, end in cuts
            for kind in KINDS
        ]
        generator = torch.Generator().manual_seed(rank)
        pieces = (0.02 * torch.randn(s.numel, generator=generator) for s in slices)
        digest = tensor_file.write_pieces(
            path, slices, pieces, {"adamStep": "1"}, lambda: None, xxhash.xxh3_128()
        )
        files.append(ManifestEntry(path=path.name, size_bytes=path.stat().st_size, xxh3_128=digest))
    manifest = Manifest(
        step=1,
        rows_consumed=RANKS,
        fence_epoch=1,
        attempt=1,
        job_uid="uid",
        run_digest="run",
        world_size=RANKS,
        zero_stage=3,
        creation_time=datetime.now(UTC),
        files=files,
    )
    (folder / store.MANIFEST).write_text(manifest.to_json())


def measure(part: str, folder: Path) -> dict[str, float]:
    """Run one part in this process; return its seconds and its memory in MiB."""
    import transformers  # noqa: F401 - memory of the libraries must not count

    run = config(folder)
    paths = RunPaths.of(run)
    start = memory()
    watch = MemoryWatch()
    began = time.monotonic()
    if part == "export":
        report = ChannelReporter(os.open(os.devnull, os.O_WRONLY))
        model_export.run(run, paths, report, epoch=1, final_step=1)
        out = paths.final
    else:
        found = store.read_manifest(paths.checkpoint(1, 1))
        assert found is not None
        out = folder / "weights"
        out.mkdir()
        reader = CheckpointReader(paths.checkpoint(1, 1), found)
        weights.write(contents_of(paths.model, reader, torch.bfloat16), reader, out, lambda: None)
    seconds = time.monotonic() - began
    watch.stop()
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    peaks = {"anonymous": watch.anonymous, "all": watch.all}
    values = {"start": start["RssAnon"], **peaks, "output": size}
    return {name: value / MIB for name, value in values.items()} | {"seconds": seconds}


class MemoryWatch:
    """Peaks of the memory of this process in bytes, sampled every 5 ms."""

    def __init__(self) -> None:
        self.anonymous = self.all = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            found = memory()
            self.anonymous = max(self.anonymous, found["RssAnon"])
            self.all = max(self.all, found["VmRSS"])


def memory() -> dict[str, int]:
    """Return bytes by their names in /proc/self/status."""
    return dict(_lines(Path("/proc/self/status").read_text()))


def _lines(text: str) -> Iterator[tuple[str, int]]:
    for name, kilobytes in re.findall(r"^(VmRSS|RssAnon|RssFile):\s+(\d+) kB$", text, re.MULTILINE):
        yield name, int(kilobytes) * 1024


if __name__ == "__main__":
    sys.exit(main())
