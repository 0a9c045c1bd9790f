"""Every way to compute a run, stopped in the middle and resumed: the very bits of one left alone.

One launch of two ranks for all of them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.run import RunConfig
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.fragments import KINDS
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.data import prepared
from finetune_trainer.export import select
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import gang, tiny, weights
from tests.trainer.conftest import MakeJob
from tests.trainer.launch import run_cases

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 8
BF16_MOMENTS = {"optimizer": {"momentPrecision": "BF16"}}
# name -> ZeRO stage, what the plan says, what training says
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
    "fp32-recomputed-3": (3, {"activationCheckpointing": "Always"}, {"precision": "FP32"}),
}
# A short epoch of two weighted sources, and evaluations: the run is cut in one of them, in the
# middle of a later epoch.
MIXED: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "mixed-2": (2, {}, {}),
    "mixed-3": (3, {}, {}),
}
CROSSED = {"from-2-to-3": (2, 3), "from-3-to-2": (3, 2)}  # resumed with another ZeRO stage
EARLY = {"intervalSteps": 1, "earlyStopping": {"patience": 3, "minDelta": 1.0}}


@dataclass
class Launch:
    configs: dict[str, dict[str, Any]]
    results: dict[str, dict[str, Any]]
    model: Path

    def paths(self, name: str) -> RunPaths:
        return RunPaths.of(RunConfig.model_validate(self.configs[name]))

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """Master weights and moments of the last step."""
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
    """What a configuration says of a mixture, which lies in the claim's cache."""
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

    in_save, in_evaluation = ["Checkpointing", 1], ["Evaluating", 3]  # after the baseline's
    mixture = prepared_mixture(job)
    for name, (stage, plan, training) in (OPTIONS | MIXED).items():
        changes, stop = (mixture, in_evaluation) if name in MIXED else ({}, in_save)
        whole = config(name, stage, plan, training, **changes)
        cut = config(f"{name}-cut", stage, plan, training, **changes)
        cases += [
            {"name": name, "config": whole},
            {"name": f"{name}-cut", "config": cut, "stopIn": stop},
            {"name": f"{name}-resumed", "config": cut},
        ]
    for name, stages in CROSSED.items():
        first, then = (config(f"{name}-cut", stage, {}, {}) for stage in stages)
        cases += [
            {"name": f"{name}-cut", "config": first, "stopIn": in_save},
            {"name": f"{name}-resumed", "config": then},
        ]
    early = config("early", 2, {"learningRate": 1e-6}, {}, evaluation=EARLY)
    overfit = config("overfit", 2, {"learningRate": 0.05}, {}, evaluation={"intervalSteps": 1})
    cases += [{"name": "early", "config": early}, {"name": "overfit", "config": overfit}]
    run_cases(job.claim, cases)
    return Launch(
        {case["name"]: case["config"] for case in cases},
        {c["name"]: json.loads((job.claim / f"{c['name']}.json").read_text()) for c in cases},
        job.claim / "model",
    )


@pytest.mark.parametrize("name", [*OPTIONS, *MIXED])
def test_a_resumed_run_ends_with_the_same_bits(launch: Launch, name: str) -> None:
    cut, resumed = launch.results[f"{name}-cut"], launch.results[f"{name}-resumed"]
    assert (cut["finished"], resumed["finished"]) == (False, True)
    assert 4 <= cut["steps"][-1]["step"] < STEPS
    assert resumed["steps"][0]["step"] == cut["steps"][-1]["step"] + 1
    mine, theirs = launch.state(f"{name}-resumed"), launch.state(name)
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


@pytest.mark.parametrize("name", MIXED)
def test_a_mixture_is_cut_behind_its_first_epoch_and_evaluated_as_if_it_were_not(
    launch: Launch, name: str
) -> None:
    config = RunConfig.model_validate(launch.configs[name])
    folder = launch.paths(name).prepared(launch.configs[name]["preparedDigest"])
    sequence = prepared.sequence(folder, config.dataset.train, config.training.seed)
    epoch, reached = sequence.rows_per_epoch, launch.results[f"{name}-cut"]["steps"]
    trained = 4 * reached[-1]["step"]  # rows
    assert trained > epoch
    assert trained % epoch  # not between two epochs
    resumed, whole = (launch.results[run]["evaluation"] for run in (f"{name}-resumed", name))
    assert resumed == whole
    assert whole["last"] < whole["baseline"]


@pytest.mark.parametrize("name", CROSSED)
def test_a_run_goes_on_with_another_stage(launch: Launch, name: str) -> None:
    begun = launch.results[f"{name}-cut"]["steps"]
    steps = [*begun, *launch.results[f"{name}-resumed"]["steps"]]
    plain = launch.results[f"plain-{CROSSED[name][0]}"]["steps"]
    assert [step["step"] for step in steps] == [step["step"] for step in plain]
    assert [s["trainLoss"] for s in begun] == [s["trainLoss"] for s in plain[: len(begun)]]
    for step, other in zip(steps, plain, strict=True):
        assert step["trainLoss"] == pytest.approx(other["trainLoss"], abs=1e-3)
    # On some processors the very bits; kernels sum differently in memory that lies elsewhere.
    mine, theirs = launch.state(f"{name}-resumed"), launch.state(f"plain-{CROSSED[name][0]}")
    for key, value in mine.items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-6, msg=key)


def test_what_is_computed_again_has_the_same_bits(launch: Launch) -> None:
    mine, theirs = launch.state("recomputed"), launch.state("plain-2")
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


@pytest.mark.parametrize("name", ["optimizer-offloaded", "all-offloaded", "plain-3"])
def test_sums_in_another_order_learn_the_same(launch: Launch, name: str) -> None:
    """Kernels sum differently in memory that lies elsewhere, on some processors."""
    mine, theirs = (launch.results[run]["steps"] for run in (name, "plain-2"))
    for step, other in zip(mine, theirs, strict=True):
        assert step["trainLoss"] == pytest.approx(other["trainLoss"], abs=1e-3)


def test_compact_moments_learn_the_same_in_less_room(launch: Launch) -> None:
    mine, theirs = (launch.results[name]["steps"] for name in ("moments-2", "plain-2"))
    for step, other in zip(mine, theirs, strict=True):
        assert step["trainLoss"] == pytest.approx(other["trainLoss"], abs=2e-2)
    sizes = [
        sum(entry.size_bytes for entry in store.published(launch.paths(name))[0][1].files)
        for name in ("moments-2", "plain-2")
    ]
    assert sizes[0] < 0.72 * sizes[1]  # 8 bytes a parameter instead of 12


def test_early_stopping_ends_the_run_well(launch: Launch) -> None:
    found = launch.results["early"]
    assert found["finished"]
    assert found["steps"][-1]["step"] == 3  # the baseline, then three that do not beat it by 1.0
    assert store.published(launch.paths("early"))[0][1].step == 3


def test_the_best_checkpoint_is_kept_and_chosen(launch: Launch) -> None:
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
        _, manifest = select.checkpoint(paths, "digest", STEPS, wanted, lambda: None)
        assert manifest.step == step
