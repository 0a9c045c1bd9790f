"""The README.md of the finished model."""

from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer import prepared
from finetune_trainer.paths import RunPaths


def model_card(config: RunConfig, manifest: Manifest, paths: RunPaths) -> str:
    """Markdown: where the model comes from and what was done to it."""
    plan, training = config.plan, config.training
    data = prepared.summary(paths.prepared(config.prepared_digest or ""), config)
    sources = "\n".join(f"* `{s.source}`: {s.examples} examples" for s in data.sources)
    loss = manifest.validation_loss
    measured = "not measured" if loss is None else f"{loss:.4f} nats per token"
    rate = plan.learning_rate if plan else None
    batch = plan.global_batch_size if plan else None
    return f"""---
library_name: transformers
tags: [full-fine-tuning]
---
# {config.job_name}

A full fine-tune (every weight) of `{config.model.source}`.

| | |
|---|---|
| step | {manifest.step} |
| validation loss | {measured} |
| learning rate | {rate}, {training.schedule} |
| rows per step | {batch} of at most {training.sequence_length} tokens |
| precision | {training.precision}, fp32 master weights and moments |
| seed | {training.seed} |
| run digest | `{manifest.run_digest}` |

## Data
{data.examples} examples, {data.tokens} tokens, {data.trained_tokens} of them trained on.

{sources}

The licence of the base model applies.
"""
