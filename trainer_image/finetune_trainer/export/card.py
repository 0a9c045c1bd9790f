"""The README.md of the finished model."""

from finetune_api.progress import DataSummary, Evaluation, Plan
from finetune_api.run import RunConfig
from finetune_api.storage import Manifest
from finetune_trainer import run_log
from finetune_trainer.export.contents import Contents
from finetune_trainer.paths import RunPaths


def render(
    config: RunConfig,
    manifest: Manifest,
    paths: RunPaths,
    model: Contents,
    digests: dict[str, str],
) -> str:
    """Markdown: where the model comes from, what was done to it, how to load it.

    `digests`: weight file -> sha256.
    """
    card = paths.prepared(config.prepared_digest or "") / "card.json"
    data = DataSummary.model_validate_json(card.read_text())
    parameters = sum(entry.numel for entry in model.entries)
    facts = {
        "parameters": f"{parameters:,}, all of them trained",
        "stored as": str(model.dtype).removeprefix("torch."),
        "step": str(manifest.step),
        "run digest": f"`{manifest.run_digest}`",
    }
    loss = run_log.train_loss(paths, manifest.step)
    losses = {"training, at this step": loss} | _validation(paths, manifest)
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
{data.rows} rows. Dropped: {data.dropped_overlong} too long, {data.dropped_useless} without a
trained token.

{_sources(data)}

## Hyper-parameters

{_table(_hyper_parameters(config))}
## Files

{_table({f"`{name}`": f"sha256 `{digest}`" for name, digest in digests.items()})}
The licence of the base model applies.
"""


def _validation(paths: RunPaths, manifest: Manifest) -> dict[str, float | None]:
    """As the run recorded them; the checkpoint's own is that of these very weights."""
    try:
        found = Evaluation.model_validate_json((paths.storage / "evaluation.json").read_text())
    except (OSError, ValueError):
        found = Evaluation()
    return {
        "validation, before training": found.baseline,
        f"validation, best (step {found.best_step})": found.best,
        f"validation, last (step {found.last_step})": found.last,
        "validation, of these weights": manifest.validation_loss,
    }


def _hyper_parameters(config: RunConfig) -> dict[str, str]:
    training = config.training
    optimizer = training.optimizer
    return _planned(config.plan) | {
        "schedule": f"{training.schedule}, to {training.min_learning_rate_ratio} of the peak",
        "sequence length": f"{training.sequence_length}, packing {str(training.packing).lower()}",
        "optimizer": f"AdamW, beta1 {optimizer.beta1}, beta2 {optimizer.beta2}, epsilon "
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
