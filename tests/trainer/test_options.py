"""Runs with every option, stopped in the middle and resumed, are bit-identical to undisturbed ones.

One launch of two ranks runs all of them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_api.run import RunConfig
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.fragments import KINDS
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.data import prepared
from finetune_trainer.export.model_export import choose_checkpoint
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import gang, tiny, weights
from tests.trainer.conftest import MakeJob
from tests.trainer.launch import run_cases
from tests.trainer.test_architectures import tiny as tiny_family
from tests.trainer.test_stored_layout import MODELS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 8
BF16_MOMENTS = {"optimizer": {"momentPrecision": "BF16"}}
# name -> ZeRO stage, fields of the plan, fields of training
OPTIONS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "plain-2": (2, {}, {}),
    "plain-3": (3, {}, {}),
    "optimizer-offloaded-1": (1, {"offload": "Optimizer"}, {}),
    "optimizer-offloaded": (2, {"offload": "Optimizer"}, {}),
    "optimizer-offloaded-3": (3, {"offload": "Optimizer"}, {}),
    "all-offloaded": (3, {"offload": "OptimizerAndParameters"}, {}),
    "recomputed": (2, {"activationCheckpointing": "Always"}, {}),
    "moments-1": (1, {}, BF16_MOMENTS),
    "moments-2": (2, {}, BF16_MOMENTS),
    "moments-3": (3, {}, BF16_MOMENTS),
    "fp32-1": (1, {}, {"precision": "FP32"}),
    "fp32-2": (2, {}, {"precision": "FP32"}),
    "fp32-recomputed-3": (3, {"activationCheckpointing": "Always"}, {"precision": "FP32"}),
}
# A short epoch of two weighted sources, with evaluations. The run is stopped during an evaluation,
# in the middle of a later epoch.
MIXED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "mixed-2": (2, {}, {}),
    "mixed-3": (3, {}, {}),
}
CROSSED = {"from-2-to-3": (2, 3), "from-3-to-2": (3, 2)}  # resumed with another ZeRO stage
# What is loaded for ZeRO-3: fields of the plan, and of the model that is made.
LOADED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({}, {"width": 1024, "layers": 4}),
    "untied-offloaded": ({"offload": "OptimizerAndParameters"}, {"tied": False, "width": 256}),
    "head-differs": ({}, {"width": 256}),
    "experts": ({}, {}),
}
EARLY = {"intervalSteps": 1, "earlyStopping": {"patience": 3, "minDelta": 1.0}}


@dataclass
class Launch:
    configs: dict[str, dict[str, Any]]
    results: dict[str, dict[str, Any]]
    model: Path

    def paths(self, name: str) -> RunPaths:
        return RunPaths.of(RunConfig.model_validate(self.configs[name]))

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """Return master weights and moments after the last step."""
        found = store.newest_valid(self.paths(name), "digest")
        assert found is not None
        assert found[1].step == STEPS
        reader = CheckpointReader(*found)
        parameters = weights.load(self.model).named_parameters()
        return {
            f"{key}|{kind}": reader.read(key, kind, 0, parameter.numel())
            for key, parameter in parameters
            for kind in KINDS
        }


def prepared_mixture(job: gang.Job) -> dict[str, Any]:
    """Prepare a mixture in the cache of the claim, and return its fields of the configuration."""
    sources = []
    for number, (count, weight) in enumerate(((3, 1.0), (2, 2.0))):
        rows = tiny.make_messages(count, 10 + number)
        tiny.write_jsonl(job.claim / f"data/part-{number}.jsonl", rows)
        sources.append({"source": f"pvc://w/data/part-{number}.jsonl", "weight": weight})
    mixed = gang.make_job(job.claim)
    dataset = mixed.config["dataset"] | {"train": sources}
    mixed.config |= {"dataset": dataset, "cache": "pvc://w/cache"}
    assert mixed.prepare().wait() == 0
    digest = mixed.config["preparedDigest"]
    return {"dataset": dataset, "preparedDigest": digest, "evaluation": {"intervalSteps": 2}}


def make_wide(folder: Path, **changes: Any) -> None:
    """Write a model that is large compared with the noise in the memory of a rank.

    The folder `head-differs` stores a head with other values than the embedding, although its
    config.json ties them: transformers then does not tie them. `experts` stores experts one by
    one, and a bias of their router, which is a buffer.
    """
    if folder.name == "experts":
        from transformers import AutoModelForCausalLM

        config = tiny_family("glm4_moe", **MODELS["glm4_moe"]).config()
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        return
    tiny.make_model(folder, **changes)
    if folder.name == "head-differs":
        file = folder / "model.safetensors"
        tensors = load_file(file)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
        save_file(tensors, file, {"format": "pt"})


@pytest.fixture(scope="module")
def launch(make_job: MakeJob) -> Launch:
    job = make_job()
    (job.storage / "cache").rename(job.claim / "cache")

    def config(
        run: str, stage: int, plan: dict[str, Any], training: dict[str, Any], **changes: Any
    ) -> dict[str, Any]:
        values = {"zeroStage": stage, "totalSteps": STEPS, **plan}
        return job.config | {
            "role": "worker",
            "attempt": 1,
            "mounts": {"w": str(job.claim)},
            "checkpoints": {"storage": f"pvc://w/runs/{run}", "intervalSteps": 4},
            "cache": "pvc://w/cache",
            "runDigest": "digest",
            "training": {"sequenceLength": 128, "maxSteps": STEPS, "seed": 3, **training},
            "plan": gang.make_plan(**values).to_dict(),
            **changes,
        }

    cases: list[dict[str, Any]] = []

    in_save, in_evaluation = ["Checkpointing", 1], ["Evaluating", 3]  # the baseline is the first
    mixture = prepared_mixture(job)
    for name, (stage, plan, training) in (OPTIONS | MIXED).items():
        changes, stop = (mixture, in_evaluation) if name in MIXED else ({}, in_save)
        undisturbed = config(name, stage, plan, training, **changes)
        stopped = config(f"{name}-stopped", stage, plan, training, **changes)
        cases += [
            {"name": name, "config": undisturbed},
            {"name": f"{name}-stopped", "config": stopped, "stopIn": stop},
            {"name": f"{name}-resumed", "config": stopped},
        ]
    for name, stages in CROSSED.items():
        first, then = (config(f"{name}-stopped", stage, {}, {}) for stage in stages)
        cases += [
            {"name": f"{name}-stopped", "config": first, "stopIn": in_save},
            {"name": f"{name}-resumed", "config": then},
        ]
    early = config("early", 2, {"learningRate": 1e-6}, {}, evaluation=EARLY)
    overfit = config("overfit", 2, {"learningRate": 0.05}, {}, evaluation={"intervalSteps": 1})
    cases += [{"name": "early", "config": early}, {"name": "overfit", "config": overfit}]
    for name, (plan, model) in LOADED.items():
        make_wide(job.claim / name, **model)
        loaded = config(name, 3, plan, {}, model={"source": f"pvc://w/{name}"})
        cases.append({"name": f"load-{name}", "config": loaded, "onlyLoad": True})
    run_cases(job.claim, cases)
    return Launch(
        {case["name"]: case["config"] for case in cases},
        {c["name"]: json.loads((job.claim / f"{c['name']}.json").read_text()) for c in cases},
        job.claim / "model",
    )


@pytest.mark.parametrize("name", [*OPTIONS, *MIXED])
def test_a_resumed_run_ends_with_the_same_bits(launch: Launch, name: str) -> None:
    stopped, resumed = launch.results[f"{name}-stopped"], launch.results[f"{name}-resumed"]
    assert (stopped["finished"], resumed["finished"]) == (False, True)
    assert 4 <= stopped["steps"][-1]["step"] < STEPS
    assert resumed["steps"][0]["step"] == stopped["steps"][-1]["step"] + 1
    found, expected = launch.state(f"{name}-resumed"), launch.state(name)
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("name", OPTIONS)
def test_zero_3_keeps_its_matrices_in_slices(launch: Launch, name: str) -> None:
    matrices = [key for key, p in weights.load(launch.model).named_parameters() if p.ndim > 1]
    for run in (name, f"{name}-resumed"):
        found = [key.removeprefix("model.") for key in launch.results[run]["inSlices"]]
        assert found == (matrices if OPTIONS[name][0] == 3 else [])


@pytest.mark.parametrize("name", MIXED)
def test_a_mixture_stopped_in_a_later_epoch_is_evaluated_like_an_undisturbed_one(
    launch: Launch, name: str
) -> None:
    config = RunConfig.model_validate(launch.configs[name])
    folder = launch.paths(name).prepared(launch.configs[name]["preparedDigest"])
    sequence = prepared.sequence(folder, config.dataset.train, config.training.seed)
    epoch = sequence.rows_per_epoch
    trained = 4 * launch.results[f"{name}-stopped"]["steps"][-1]["step"]  # rows
    assert trained > epoch
    assert trained % epoch  # not between two epochs
    resumed, undisturbed = (launch.results[run]["evaluation"] for run in (f"{name}-resumed", name))
    assert resumed == undisturbed
    assert undisturbed["last"] < undisturbed["baseline"]


@pytest.mark.parametrize("name", CROSSED)
def test_a_run_resumes_with_another_zero_stage(launch: Launch, name: str) -> None:
    begun = launch.results[f"{name}-stopped"]["steps"]
    steps = [*begun, *launch.results[f"{name}-resumed"]["steps"]]
    plain = launch.results[f"plain-{CROSSED[name][0]}"]["steps"]
    assert [step["step"] for step in steps] == [step["step"] for step in plain]
    assert [s["trainLoss"] for s in begun] == [s["trainLoss"] for s in plain[: len(begun)]]
    for step, other in zip(steps, plain, strict=True):
        assert step["trainLoss"] == pytest.approx(other["trainLoss"], abs=1e-3)
    # Not bit-identical on some processors: the order of sums depends on the alignment of memory.
    found, expected = launch.state(f"{name}-resumed"), launch.state(f"plain-{CROSSED[name][0]}")
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6, msg=key)


def test_recomputed_activations_give_the_same_bits(launch: Launch) -> None:
    found, expected = launch.state("recomputed"), launch.state("plain-2")
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize("name", ["optimizer-offloaded", "all-offloaded", "plain-3"])
def test_offload_and_zero_3_have_the_losses_of_zero_2(launch: Launch, name: str) -> None:
    """On some processors, the order of sums depends on the alignment of memory."""
    found, expected = (launch.results[run]["steps"] for run in (name, "plain-2"))
    for step, other in zip(found, expected, strict=True):
        assert step["trainLoss"] == pytest.approx(other["trainLoss"], abs=1e-3)


def test_bf16_moments_have_about_the_same_losses_in_smaller_checkpoints(launch: Launch) -> None:
    found, expected = (launch.results[name]["steps"] for name in ("moments-2", "plain-2"))
    for step, other in zip(found, expected, strict=True):
        assert step["trainLoss"] == pytest.approx(other["trainLoss"], abs=2e-2)
    sizes = [
        sum(entry.size_bytes for entry in store.published(launch.paths(name))[0][1].files)
        for name in ("moments-2", "plain-2")
    ]
    assert sizes[0] < 0.72 * sizes[1]  # 8 bytes per parameter instead of 12


@pytest.mark.parametrize("name", LOADED)
def test_zero_3_loads_slices_and_no_rank_holds_the_whole_model(launch: Launch, name: str) -> None:
    found = launch.results[f"load-{name}"]
    total, largest = found["total"], found["largest"]
    assert found["slices"] - total in range(2 * 200)  # some are padded
    assert found["different"] == []
    assert found["sameNames"]
    assert found["sameBuffers"]
    assert found["tied"] == (name == "tied")
    for elements, grown in zip(found["elements"], found["grown"], strict=True):
        assert elements < total / 2 + 3 * largest
        assert grown < 2 * (total / 2 + 3 * largest) + 4e6


def test_early_stopping_completes_the_run(launch: Launch) -> None:
    found = launch.results["early"]
    assert found["finished"]
    assert (
        found["steps"][-1]["step"] == 3
    )  # three evaluations that are not better than the baseline by 1.0
    assert store.published(launch.paths("early"))[0][1].step == 3


def test_the_best_checkpoint_is_kept_and_selected(launch: Launch) -> None:
    paths = launch.paths("overfit")
    evaluation = launch.results["overfit"]["evaluation"]
    kept = {manifest.step: manifest for _, manifest in store.published(paths)}
    best = min(
        (loss, step)
        for step, loss in ((m.step, m.validation_loss) for m in kept.values())
        if loss is not None
    )
    if evaluation["bestStep"] > 0:
        assert best == (evaluation["best"], evaluation["bestStep"])
    for wanted, step in (("Best", best[1]), ("Last", STEPS), (None, best[1])):
        _, manifest = choose_checkpoint(paths, "digest", STEPS, wanted, lambda: None)
        assert manifest.step == step
