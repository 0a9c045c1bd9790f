"""Digests stay the same from release to release: they name prepared data and runs on storage."""

from pathlib import Path

import numpy as np
import pytest

from finetune_api.progress import DataSummary, SourceSummary
from finetune_api.run import RunConfig
from finetune_trainer.data.prepared import Row, RowWriter, digest_of_rows
from finetune_trainer.prepare import inputs
from finetune_trainer.prepare.inputs import (
    digest_of_prepared_data,
    digest_of_run,
    digest_of_tokenizer,
    earlier_digest_of_run,
)
from finetune_trainer.run_dir.paths import Cache
from finetune_trainer.sources.download import Downloads
from tests.trainer.silent import SilentReporter

PREPARED = "8c12273d39f288c130bb5a3e38b276abf3bceb92ce154385e446639745cf86b3"
EARLIER_PREPARED = "2820bfbceea93c93910bec9e83154a7a2026528a25f10a778ace493023656fb5"
RUN = "ff36c16d027f1895f93a3527c1776ac26c3a0fd6fff06de46bba77a92eac3e35"
ROWS = "43eb136d4551ed7a19d9cab0310f06807d5faf891d03cb43ef3326edc52a6d3b"
EARLIER_RUN = "ff236f9119c6019bf1cc5633f34574f600ab3ed5eadb1766a2a15c386459237e"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return a configuration with every kind of input, over files with fixed contents."""
    monkeypatch.setattr("tokenizers.__version__", "0.22.1")
    monkeypatch.setattr("transformers.__version__", "5.17.3")
    for name, text in {
        "model/tokenizer.json": "{}",
        "model/tokenizer_config.json": '{"a": 1}',
        "chats.jsonl": '{"messages": []}\n',
        "texts.json": '[{"text": "a"}]',
        "held.csv": "text\na\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return RunConfig.model_validate(
        {
            "jobName": "job",
            "jobNamespace": "default",
            "jobUid": "uid",
            "role": "prepare",
            "model": {"source": "pvc://w/model"},
            "dataset": {
                "train": [
                    {"source": "pvc://w/chats.jsonl", "columns": {"tools": "t"}, "weight": 0.25},
                    {"source": "pvc://w/texts.json", "format": "Text", "weight": 0.75},
                ],
                "validation": [{"source": "pvc://w/held.csv"}],
                "chatTemplate": {"inline": "{{ messages }}"},
                "lossOn": "All",
            },
            "training": {"sequenceLength": 512, "packing": False, "seed": 3, "maxSteps": 10},
            "checkpoints": {"storage": "pvc://w/runs"},
            "mounts": {"w": str(tmp_path)},
        }
    )


def test_digests_of_fixed_inputs_do_not_change(config: RunConfig) -> None:
    report = SilentReporter()
    downloads = Downloads(Cache.of(config), config.job_uid, report)
    data = inputs.find_data(config.dataset, config.mounts, downloads)
    tokenizer = digest_of_tokenizer(Path(config.mounts["w"]) / "model", config.model.source)
    found = digest_of_prepared_data(
        data, tokenizer, config.dataset, config.training, report.advance
    )
    assert (found.current, found.earlier) == (PREPARED, EARLIER_PREPARED)
    spec = (config.dataset, config.training)
    assert digest_of_run("model-digest", "rows-digest", *spec) == RUN
    assert earlier_digest_of_run("model-digest", found.earlier, *spec) == EARLIER_RUN


def test_the_digest_of_fixed_rows_does_not_change(tmp_path: Path) -> None:
    row = Row(*(np.array(values) for values in ([5, 6, 7], [0, 1, 1], [1, 2])))
    for split in ("train", "validation"):
        with RowWriter(tmp_path, split) as writer:
            writer.add(row)
    source = SourceSummary(source="pvc://w/a", rows=1, examples=2)
    card = DataSummary(
        examples=2, rows=1, tokens=3, trained_tokens=2, packing_efficiency=1, sources=[source]
    )
    (tmp_path / "card.json").write_text(card.to_json())
    assert digest_of_rows(tmp_path, lambda: None) == ROWS
