"""What the device reports about its memory."""

from types import SimpleNamespace

import torch

from finetune_api.progress import Progress
from finetune_trainer.training import device_memory


def test_a_gpu_reports_its_name_its_memory_and_its_peak(monkeypatch) -> None:
    name = "NVIDIA GH200 480GB with a name that is longer than expected"
    found = SimpleNamespace(name=name, total_memory=85_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 70_000_000_000)
    facts = device_memory.facts(torch.device("cuda", 0))
    progress = Progress(step=1, total_steps=2, **facts)
    assert progress.device_memory_bytes == 70_000_000_000
    assert progress.device_name == "NVIDIA GH200 480GB with a name that , 85.0 GB"


def test_a_cpu_reports_nothing() -> None:
    assert device_memory.facts(torch.device("cpu")) == {}
