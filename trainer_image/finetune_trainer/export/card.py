"""The README.md of the finished model."""

from finetune_api.progress import DataSummary, Evaluation, Plan
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer.export.contents import Contents


def render(
    config: RunConfig,
    manifest: Manifest,
    data: DataSummary,
    losses: dict[str, float | None],
    model: Contents,
    digests: dict[str, str],
) -> str:
    """Markdown: where the model comes from, what was done to it, how to load it.

    `losses`: what -> nats per trained token, None where it was not measured. `digests`: weight
    file -> sha256.
    """
    parameters = sum(entry.numel for entry in model.entries)
    facts = {
        "parameters": f"{parameters:,}, all of them trained",
        "stored as": str(model.dtype).removeprefix("torch."),
        "step": str(manifest.step),
        "run digest": f"`{manifest.run_digest}`",
    }
    return f"""---
library_name: transformers
tags: [full-fine-tuning]
---
# {config.job_name}

A full fine-tune (every weight) of `{config.model.source}`.

{_table(facts)}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

Servers that choose a type themselves should be told `--dtype {facts["stored as"]}`.

## Losses

In nats per trained token.

{_table({what: _number(value) for what, value in losses.items()})}
## Data

{data.examples} examples, {data.tokens} tokens, {data.trained_tokens} of them trained on, in
{data.rows} rows. Dropped: {data.dropped_overlong} too long, {data.dropped_empty} empty,
{data.dropped_untrained} without a trained token.

{_sources(data)}

## Hyper-parameters

{_table(_hyper_parameters(config))}
## Files

{_table({f"`{name}`": f"sha256 `{digest}`" for name, digest in digests.items()})}
The licence of the base model applies.
"""


def losses(
    training: float | None, manifest: Manifest, validation: Evaluation
) -> dict[str, float | None]:
    """Those of the run, and those of the very weights that are exported."""
    return {
        "training, at this step": training,
        "validation, before training": validation.baseline,
        f"validation, best (step {validation.best_step})": validation.best,
        f"validation, last (step {validation.last_step})": validation.last,
        "validation, of these weights": manifest.validation_loss,
    }


def _hyper_parameters(config: RunConfig) -> dict[str, str]:
    training = config.training
    optimizer = training.optimizer
    return _planned(config.plan) | {
        "schedule": f"{training.schedule}, to {training.min_learning_rate_ratio} of the peak",
        "sequence length": f"{training.sequence_length}, packing {str(training.packing).lower()}",
        "optimizer": f"AdamW, beta1 {optimizer.beta1}, beta2 {training.beta2}, epsilon "
        f"{optimizer.epsilon}, weight decay {optimizer.weight_decay}",
        "gradient clipping": f"global L2 norm {training.max_grad_norm}",
        "precision": f"{training.precision} compute, fp32 master weights",
        "seed": str(training.seed),
    }


def _planned(plan: Plan | None) -> dict[str, str]:
    if plan is None:
        return {}
    return {
        "learning rate": f"{plan.learning_rate}, {plan.warmup_steps} steps of warm-up",
        "steps": str(plan.total_steps),
        "rows per step": str(plan.global_batch_size),
    }


def _sources(data: DataSummary) -> str:
    return "\n".join(
        f"* `{source.source}`: {source.examples} examples in {source.rows} rows"
        for source in data.sources
    )


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
