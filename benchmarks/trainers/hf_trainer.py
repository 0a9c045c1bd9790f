"""Full fine-tuning with transformers.Trainer and DeepSpeed, one process of several.

Run it as `python -m benchmarks.trainers.hf_trainer settings.json`, with RANK, LOCAL_RANK,
WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.

Without a GPU, transformers 5.23, accelerate 1.15 and deepspeed 0.19.8 need some care:

* `bf16=True` requires `use_cpu=True`, but then TrainingArguments does not start the process group
  of DeepSpeed, and ZeRO-3 would load the model for a world size of 1 and fail. So
  `deepspeed.init_distributed()` is called first.
* `init_distributed` compiles an operator for inference, which needs g++ and half a minute, and a
  killed build blocks all later ones. So the operator is declared incompatible before the call.
* Trainer uses torch's AdamW, which DeepSpeed accepts with `zero_allow_untested_optimizer`.
* The process ends with `os._exit` after a barrier, because destroying the group may abort.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

_BUCKET = 200_000_000  # elements, as in ours; "auto" means hidden_size^2, hence tiny collectives

_RECOMPUTE = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed()
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        DataCollatorWithFlattening,
    )

    arguments = _arguments(settings)  # first, because ZeRO-3 partitions the model while loading
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        settings["model"],
        dtype=torch.bfloat16 if arguments.bf16 else torch.float32,
        attn_implementation="sdpa",
    )
    data = [json.loads(line) for line in Path(settings["data"]).read_text().splitlines()]
    clock = _clock(Path(settings["steps"] + f".{arguments.process_index}"), settings)
    padding = DataCollatorForSeq2Seq(
        tokenizer, pad_to_multiple_of=8 if torch.cuda.is_available() else None
    )
    trainer = _trainer(clock)(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=DataCollatorWithFlattening() if settings["packed"] else padding,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _arguments(settings: dict[str, Any]) -> Any:
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    optimizer = settings["optimizer"]
    return TrainingArguments(
        output_dir=settings["output"],
        per_device_train_batch_size=settings["micro_batch"],
        gradient_accumulation_steps=settings["accumulate"],
        max_steps=settings["total"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        adam_beta1=optimizer["beta1"],
        adam_beta2=optimizer["beta2"],
        adam_epsilon=optimizer["epsilon"],
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=settings["max_grad_norm"],
        bf16=settings["bf16"],
        use_cpu=not cuda,
        train_sampling_strategy="group_by_length" if settings["grouped"] else "random",
        **(_RECOMPUTE if settings["recompute"] else {}),
        use_liger_kernel=settings["liger"],
        # Without a GPU a loader process would slow down the computing ones.
        dataloader_num_workers=2 if cuda else 0,
        dataloader_pin_memory=cuda,
        save_steps=settings["saved"],
        logging_steps=settings["logged"],
        disable_tqdm=True,
        report_to="none",
        seed=settings["seed"],
        deepspeed=_deepspeed(settings),
    )


def _deepspeed(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": settings["bf16"]},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": settings["stage"],
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "reduce_bucket_size": _BUCKET,
            "allgather_bucket_size": _BUCKET,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }


def _clock(file: Path, settings: dict[str, Any]) -> Any:
    """Return a callback that writes a line with the counts and the seconds of every step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.counts: dict[str, torch.Tensor] = {}
            self._file = file.open("w", buffering=1)
            self._lap = time.monotonic()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._lap = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if torch.cuda.is_available():  # Trainer reads every loss, so all work is already done
                torch.cuda.synchronize()
            now = time.monotonic()
            counts = {name: int(count) for name, count in self.counts.items()}
            self._write("train", step=state.global_step, seconds=now - self._lap, **counts)
            self._lap = now
            if state.global_step == settings["total"]:
                control.should_save = False  # only the earlier save is measured

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            now = time.monotonic()
            self._write("save", step=state.global_step, seconds=now - self._lap)
            self._lap = now

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:  # noqa: ARG002
            if "loss" in logs:
                self._write("log", step=state.global_step, loss=logs["loss"])

        def _write(self, part: str, **facts: float) -> None:
            self._file.write(json.dumps({"part": part, "at": time.time()} | facts) + "\n")

    return Clock()


def _tokens(batch: Any) -> Any:
    """Return the number of tokens of a micro-batch, without padding, which a packed one lacks."""
    return (
        batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()
    )


def _conversations(batch: Any) -> Any:
    if "position_ids" in batch:  # packed: each one begins with position 0
        return batch["position_ids"].eq(0).sum()
    return len(batch["input_ids"])


def _trainer(clock: Any) -> type:
    """Return a Trainer that also counts the tokens of a step."""
    from transformers import Trainer

    class CountingTrainer(Trainer):
        def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
            samples, items = super().get_batch_samples(*arguments, **options)
            clock.counts = {
                "tokens": sum(map(_tokens, samples)),
                "trained": sum(batch["labels"][:, 1:].ne(-100).sum() for batch in samples),
                "computed": sum(batch["input_ids"].numel() for batch in samples),
                "conversations": sum(map(_conversations, samples)),
            }
            return samples, items

    return CountingTrainer


if __name__ == "__main__":
    main()
