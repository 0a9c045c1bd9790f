"""docs/use/migrating.md names existing fields of FineTuneJobs and arguments of TRL."""

import re
from dataclasses import fields
from typing import Any

from hack.crd import structural

from finetune_api.spec import FineTuneJobSpec
from finetune_local.cache import TREE

PAGE = (TREE / "docs" / "use" / "migrating.md").read_text()
ROWS = [
    [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| TRL")
]


def exists(schema: dict[str, Any], path: str) -> bool:
    for part in path.split("."):
        schema = schema.get("properties", {}).get(part.removesuffix("[]"), {})
        schema = schema.get("items", schema)
    return bool(schema)


def test_every_field_of_the_job_exists() -> None:
    schema = structural(FineTuneJobSpec)
    named = [field for *_, own in ROWS for field in own]
    assert len(named) > 25
    assert [field for field in named if not exists(schema, field)] == []


def test_every_argument_of_trl_exists() -> None:
    from trl import ModelConfig, ScriptArguments, SFTConfig

    known = {f.name for kind in (SFTConfig, ModelConfig, ScriptArguments) for f in fields(kind)}
    named = {name for theirs, *_ in ROWS for name in theirs if re.fullmatch(r"[a-z_0-9]+", name)}
    others = {
        *("model", "train_dataset", "eval_dataset"),  # arguments of the trainer itself
        *("messages", "prompt", "completion", "warmup_ratio"),  # columns; gone in transformers 5
        *("interleave_datasets", "split"),  # of the package datasets
    }
    assert sorted(named - known - others) == []
