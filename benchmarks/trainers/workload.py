"""What all contenders do: a model, and conversations packed for ours, unpacked for the peer."""

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.operators.show import console
from benchmarks.trainers.gang import Gang

from finetune_api.progress import Plan
from finetune_api.run import Result, RunConfig
from finetune_local.cache import cache_folder
from finetune_local.demo import inputs
from finetune_trainer.data import prepared
from finetune_trainer.data.rows import Row, Rows
from finetune_trainer.run_dir.paths import RunPaths

LEARNING_RATE = 1e-5
ADDRESS = f"127.249.{os.getpid() % 250}.1"  # of our pod: a store and a report are served there
# Layers, hidden size, MLP size, heads, key-value heads, tied embeddings (Llama 3.1 and 3.2).
SHAPES = {
    "tiny": (2, 64, 128, 4, 2, True),  # to try the benchmark out
    "1b": (16, 2048, 8192, 32, 8, True),
    "3b": (28, 3072, 8192, 24, 8, True),
    "8b": (32, 4096, 14336, 32, 8, False),
}
_VOCABULARY = 128256


@dataclass(frozen=True)
class Workload:
    """What there is to do, and what it costs."""

    config: RunConfig
    model: Path
    rows: Rows
    rows_of: list[list[int]]
    """The rows of every step of ours."""
    unpacked: Path
    """The conversations in them, JSON lines of input_ids and labels."""
    conversations: int
    tokens: int
    longest: int
    body: float
    """FLOP a token, forward and backward, without the head; attention is causal."""
    head: float
    """FLOP a token of the output layer."""


def make(options: argparse.Namespace, out: Path) -> Workload:
    """Everything that is not measured."""
    claim = out / "claim"
    claim.mkdir()
    model = _model(options, claim)
    _conversations(options, claim)
    config = _prepared(options, claim, out)
    folder = RunPaths.of(config).prepared(config.prepared_digest or "")
    rows, sequence = Rows(folder, "train"), prepared.sequence(config, folder)
    size = plan(options).global_batch_size
    rows_of = [sequence.step(step * size, size) for step in range(options.steps)]
    documents = [document for step in rows_of for row in step for document in _documents(rows[row])]
    unpacked = out / "conversations.jsonl"
    unpacked.write_text("".join(json.dumps(document) + "\n" for document in documents))
    lengths = np.array([len(document["input_ids"]) for document in documents], dtype=np.float64)
    body, head = _cost(model, float((lengths**2).sum() / lengths.sum()))
    return Workload(
        config=config,
        model=model,
        rows=rows,
        rows_of=rows_of,
        unpacked=unpacked,
        conversations=len(documents),
        tokens=int(lengths.sum()),
        longest=int(lengths.max()),
        body=body,
        head=head,
    )


def plan(options: argparse.Namespace) -> Plan:
    return Plan(
        zero_stage=options.stage,
        micro_batch_size=options.micro_batch,
        gradient_accumulation_steps=options.accumulate,
        global_batch_size=options.world * options.micro_batch * options.accumulate,
        learning_rate=LEARNING_RATE,
        total_steps=options.steps,
        warmup_steps=0,
        activation_checkpointing="Always" if options.recompute else "Never",
        checkpoint_bytes=0,
    )


def _model(options: argparse.Namespace, claim: Path) -> Path:
    """SmolLM2, or random weights of another shape with its tokenizer."""
    folder = claim / "model"
    shutil.copytree(inputs.model(cache_folder(), console.print), folder)
    if options.shape is None:
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    console.print(f"random Llama of shape {options.shape}")
    layers, hidden, mlp, heads, groups, tied = SHAPES[options.shape]
    (folder / "model.safetensors").unlink()
    stop = AutoTokenizer.from_pretrained(folder).eos_token_id
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        tie_word_embeddings=tied,
        bos_token_id=stop,
        eos_token_id=stop,
        pad_token_id=stop,
    )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def _conversations(options: argparse.Namespace, claim: Path) -> None:
    """Write train.jsonl."""
    inputs.data(cache_folder(), claim, console.print)
    if options.data == "exchanges":
        return
    source = cache_folder() / "inputs" / "chitchat_dataset" / "dataset.json"
    with (claim / "train.jsonl").open("w") as file:
        for conversation in json.loads(source.read_text()).values():
            said = ["\n".join(m["text"] for m in turn).strip() for turn in conversation["messages"]]
            said = [text for text in said if text]
            messages = [
                {"role": ("user", "assistant")[number % 2], "content": text}
                for number, text in enumerate(said[: len(said) // 2 * 2])
            ]
            if messages:
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def _prepared(options: argparse.Namespace, claim: Path, out: Path) -> RunConfig:
    """The configuration of a worker, once the prepare pod has ended."""
    values: dict[str, Any] = {
        "jobName": "benchmark",
        "jobNamespace": "default",
        "jobUid": "uid",
        "role": "prepare",
        "model": {"source": "pvc://w/model"},
        "dataset": {"train": [{"source": "pvc://w/train.jsonl"}], "overlong": "Truncate"},
        "training": {
            "sequenceLength": options.sequence_length,
            "precision": options.precision,
            "maxSteps": options.steps,
        },
        "checkpoints": {"storage": "pvc://w/run", "intervalSteps": options.saved},
        "output": {"weights": "Last"},
        "mounts": {"w": str(claim)},
    }
    config = RunConfig.model_validate(values)
    end = out / "prepare.end"
    env = {
        "FINETUNE_RUN": config.to_json(),
        "FINETUNE_POD_IP": ADDRESS,
        "FINETUNE_TERMINATION_LOG": str(end),
    }
    console.print("preparing the data")
    with Gang(out, "prepare") as gang:
        gang.start([sys.executable, "-m", "finetune_trainer"], env, cuda=False)
        gang.wait()
    found = Result.model_validate_json(end.read_text()).prepared
    assert found is not None
    return config.replace(
        prepared_digest=found.prepared_digest,
        run_digest=found.run_digest,
        model_revision=found.model_revision,
    )


def _documents(row: Row) -> list[dict[str, list[int]]]:
    """The conversations of a row as Trainer wants them: -100 where no loss is."""
    labels = np.where(row.trained, row.tokens.astype(np.int64), -100)
    cuts = np.cumsum(row.segments)[:-1]
    parts = zip(np.split(row.tokens, cuts), np.split(labels, cuts), strict=True)
    return [{"input_ids": t.tolist(), "labels": wanted.tolist()} for t, wanted in parts]


def _cost(folder: Path, length: float) -> tuple[float, float]:
    """FLOP a token, forward and backward: 6 a weight, and 6 x layers x width x length.

    `length`: mean length of the conversation that a token is in. Each token attends half of it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.lm_head.weight.numel()
    looked_up = model.get_input_embeddings().weight.numel()
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    body = model.num_parameters() - head - (0 if tied else looked_up)
    width = config.num_attention_heads * model.model.layers[0].self_attn.head_dim
    return 6.0 * body + 6.0 * config.num_hidden_layers * width * length, 6.0 * head
