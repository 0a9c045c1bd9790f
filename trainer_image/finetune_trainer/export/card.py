"""The model card: README.md of the exported model."""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from finetune_api.progress import DataSummary, Evaluation, Plan
from finetune_api.spec import Training
from finetune_api.uri import HubPath, parse
from finetune_trainer.export.weights import Contents

_SOFTWARE = ("finetune-operator", "torch", "transformers", "tokenizers", "deepspeed")
_CHAT = """
chat = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
output = model.generate(**inputs, max_new_tokens=100)"""
_TEXT = """
inputs = tokenizer("Once upon a time", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=100)"""


@dataclass(frozen=True)
class Origin:
    """Where, when and from what a model was made."""

    base: str  # the address of the base model
    revision: str | None  # of the base model
    begin: datetime | None  # of the first attempt, if its record can be read
    end: datetime  # when the checkpoint was written
    processes: int
    device: str
    prepared_digest: str
    rows_digest: str | None  # None: an earlier version prepared the data

    def facts(self) -> dict[str, str]:
        """Return the rows of the card's table."""
        begin = f"{_minute(self.begin)} to " if self.begin else ""
        revision = f", revision `{self.revision}`" if self.revision else ""
        found = {
            "base model": f"`{self.base}`{revision}",
            "trained": f"{begin}{_minute(self.end)} UTC",
            "hardware": f"{self.processes} process{'es' * (self.processes > 1)} on {self.device}",
            "software": ", ".join(f"{name} {_version(name)}" for name in _SOFTWARE),
            "prepared data": f"`{self.prepared_digest}`",
        }
        return found | ({"rows": f"`{self.rows_digest}`"} if self.rows_digest else {})


@dataclass(frozen=True)
class ModelCard:
    """What the card states about a model: its base, how it was trained and how to load it."""

    name: str  # of the job
    origin: Origin
    step: int
    run_digest: str
    has_chat_template: bool
    model: Contents
    losses: dict[str, float | None]  # description -> nats per trained token, None: not measured
    data: DataSummary
    training: Training
    plan: Plan | None
    digests: dict[str, str]  # weight file -> sha256

    def render(self) -> str:
        """Return the card as Markdown."""
        data, dtype = self.data, self.model.dtype_name
        facts = {
            "parameters": f"{self.model.parameter_count:,}, all of them trained",
            "stored as": dtype,
            "step": str(self.step),
            "run digest": f"`{self.run_digest}`",
            **self.origin.facts(),
        }
        return f"""---
{front_matter(self.origin.base)}
---
# {self.name}

A full fine-tune (every weight) of `{self.origin.base}`.

{_table(facts)}
## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
{_CHAT if self.has_chat_template else _TEXT}
print(tokenizer.decode(output[0]))
```

If a server chooses a type by itself, start it with `--dtype {dtype}`.

## Losses

In nats per trained token.

{_table({what: _number(value) for what, value in self.losses.items()})}
## Data

{data.examples} examples, {data.tokens} tokens, {data.trained_tokens} of them trained on, in
{data.rows} rows. Dropped: {data.dropped_overlong} too long, {data.dropped_empty} empty,
{data.dropped_untrained} without a trained token.

{_sources(data)}

## Hyper-parameters

{_table(_hyper_parameters(self.training, self.plan))}
## Files

{_table({f"`{name}`": f"sha256 `{digest}`" for name, digest in self.digests.items()})}
The licence of the base model applies.
"""


def front_matter(base: str) -> str:
    """Return the card's metadata, which name the base model if it is in a repository of the Hub."""
    address = parse(base)
    named = f"base_model: {address.repository}\n" if isinstance(address, HubPath) else ""
    return f"library_name: transformers\n{named}tags: [full-fine-tuning]"


def losses(
    training: float | None, exported: float | None, validation: Evaluation
) -> dict[str, float | None]:
    """Return the losses for the card, by description.

    `training` is the training loss at the exported step, `exported` the validation loss of the
    exported weights, `validation` the summary of the run's evaluations.
    """
    return {
        "training, at this step": training,
        "validation, before training": validation.baseline,
        f"validation, best (step {validation.best_step})": validation.best,
        f"validation, last (step {validation.last_step})": validation.last,
        "validation, of these weights": exported,
    }


def _hyper_parameters(training: Training, plan: Plan | None) -> dict[str, str]:
    optimizer = training.optimizer
    return _planned(plan) | {
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


def _minute(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(unknown version)"


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
