"""Digests stay the same from release to release: they name prepared data and runs on storage."""

from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.prepare import inputs
from finetune_trainer.prepare.inputs import (
    digest_of_prepared_data,
    digest_of_run,
    digest_of_tokenizer,
)
from finetune_trainer.run_dir.paths import Cache
from finetune_trainer.sources.download import Downloads
from tests.trainer.silent import SilentReporter

PREPARED = "2820bfbceea93c93910bec9e83154a7a2026528a25f10a778ace493023656fb5"
RUN = "ff236f9119c6019bf1cc5633f34574f600ab3ed5eadb1766a2a15c386459237e"


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
    prepared = digest_of_prepared_data(
        data, tokenizer, config.dataset, config.training, report.advance
    )
    assert prepared == PREPARED
    assert digest_of_run("model-digest", prepared, config.dataset, config.training) == RUN
