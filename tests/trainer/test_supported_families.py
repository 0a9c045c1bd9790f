"""Every family that is trained: prepare, training, a stop, resumption, export and load.

The sample runs in CI. `make families` runs all families of the page, which takes long.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finetune_trainer.model import exactness, small_copy
from finetune_trainer.run_dir.safetensors_header import read_header
from tests.trainer import gang, tiny, weights
from tests.trainer.families import FAMILIES, Family
from tests.trainer.test_architectures import rows_of_page

pytestmark = pytest.mark.slow
SAMPLE = ("gpt-oss", "Qwen3 MoE", "LFM2")
STEPS = 20


def chosen() -> list[Family]:
    supported = [
        family
        for family, row in zip(FAMILIES, rows_of_page(), strict=True)
        if not re.search(r"\| no: [^|]* \|$", row)
    ]
    everything = bool(os.environ.get("FINETUNE_EVERY_FAMILY"))
    return [family for family in supported if everything or family.models in SAMPLE]


@pytest.fixture
def job(family: Family, tmp_path: Path) -> Iterator[gang.Job]:
    """A job on one worker with a small model of the family and its own random weights."""
    from transformers import AutoModelForCausalLM

    tokenizer = tiny.make_tokenizer()
    config = family.config()
    layers = small_copy.layers_needed(exactness._empty_model(config))
    small = small_copy.small_copy(config, layers)
    small.vocab_size = len(tokenizer)
    if hasattr(small, "vocab_size_per_layer_input"):
        small.vocab_size_per_layer_input = len(tokenizer)
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(small).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tiny.write_jsonl(tmp_path / "data/train.jsonl", tiny.make_messages(40, 1))
    tiny.write_jsonl(tmp_path / "data/validation.jsonl", tiny.make_messages(5, 2))
    made = gang.make_job(tmp_path, training={"maxSteps": STEPS}, checkpoints={"intervalSteps": 2})
    made.nodes = 1
    yield made
    made.kill()


def names_of_files(folder: Path) -> set[str]:
    return {name for file in folder.glob("*.safetensors") for name in read_header(file).tensors}


@pytest.mark.parametrize("family", chosen(), ids=lambda family: family.models)
def test_a_family_is_trained_resumed_exported_and_loaded(job: gang.Job) -> None:
    prepare = job.prepare()
    assert prepare.wait() == 0, job.log
    forward_pass = prepare.result.prepared and prepare.result.prepared.forward_pass
    plan = gang.make_plan(totalSteps=STEPS, forwardPass=forward_pass)
    if forward_pass == "Document":  # two ranks with different numbers of documents
        plan, job.nodes = plan.replace(zero_stage=3), 2
    job.slow = 0.2
    job.start(plan)
    job.wait_for_text("saved a checkpoint of step 2")
    for pod in job.pods:
        pod.terminate()
    assert set(job.wait()) == {75}, job.log
    job.start(plan, highest_step=2)
    assert set(job.wait()) == {0}, job.log
    assert re.search(r"resumed from checkpoint step-0*[1-9]", job.log)
    assert names_of_files(job.storage / "final") == names_of_files(job.claim / "model")
    exported, base = weights.final(job), weights.load(job.claim / "model")
    for name, master in weights.masters(job).items():
        assert torch.equal(exported[name].flatten(), master.to(torch.bfloat16)), name
    moved = {name for name, p in base.named_parameters() if not torch.equal(exported[name], p)}
    assert {name for name, p in base.named_parameters() if p.ndim > 1} <= moved
