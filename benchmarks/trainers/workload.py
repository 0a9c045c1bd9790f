"""The work of all contenders: a model and conversations, which are packed only for ours."""

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
from finetune_trainer.data.prepared import Row, Rows
from finetune_trainer.run_dir.paths import RunPaths

LEARNING_RATE = 1e-5
ADDRESS = f"127.249.{os.getpid() % 250}.1"  # of our pod, which serves a store and a report there
# Layers, hidden size, MLP size, heads, key-value heads, tied embeddings (Llama 3.1 and 3.2).
SHAPES = {
    "tiny": (2, 64, 128, 4, 2, True),  # to try out the benchmark
    "1b": (16, 2048, 8192, 32, 8, True),
    "3b": (28, 3072, 8192, 24, 8, True),
    "8b": (32, 4096, 14336, 32, 8, False),
}
_VOCABULARY = 128256


@dataclass(frozen=True)
class Workload:
    """The work and its cost."""

    config: RunConfig
    model: Path
    rows: Rows
    rows_of: list[list[int]]
    """The rows of each of our steps."""
    unpacked: Path
    """JSON lines with the input_ids and labels of the conversations in these rows."""
    conversations: int
    tokens: int
    longest: int
    body: float
    """FLOP per token, forward and backward, without the head, with causal attention."""
    head: float
    """FLOP per token of the output layer."""


def make(options: argparse.Namespace, out: Path) -> Workload:
    """Make the work, none of which is measured."""
    claim = out / "claim"
    claim.mkdir()
    model = _model(options, claim)
    _conversations(options, claim)
    config = _prepared(options, claim, out)
    folder = RunPaths.of(config).prepared(config.prepared_digest or "")
    rows = Rows(folder, "train")
    sequence = prepared.sequence(folder, config.dataset.train, config.training.seed)
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
    """Return SmolLM2, or a model of another shape with random weights and the same tokenizer."""
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
            texts = [
                "\n".join(message["text"] for message in messages).strip()
                for messages in conversation["messages"]
            ]
            texts = [text for text in texts if text]
            messages = [
                {"role": ("user", "assistant")[number % 2], "content": text}
                for number, text in enumerate(texts[: len(texts) // 2 * 2])
            ]
            if messages:
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def _prepared(options: argparse.Namespace, claim: Path, out: Path) -> RunConfig:
    """Prepare the data as a prepare pod would, and return the configuration of a worker."""
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
    """Return the conversations of a row in the format of Trainer, where -100 means untrained."""
    labels = np.where(row.trained, row.tokens.astype(np.int64), -100)
    cuts = np.cumsum(row.segments)[:-1]
    parts = zip(np.split(row.tokens, cuts), np.split(labels, cuts), strict=True)
    return [{"input_ids": ids.tolist(), "labels": targets.tolist()} for ids, targets in parts]


def _cost(folder: Path, length: float) -> tuple[float, float]:
    """Return FLOP per token, forward and backward: of the body with attention, and of the head.

    That is 6 per weight and 6 x layers x width x length. `length` is the mean length of the
    conversation of a token, which attends to half of it.
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
