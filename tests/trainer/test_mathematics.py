"""The loop and DeepSpeed, compared with plain torch's AdamW over separate documents.

One launch runs all cases: fp32 at ZeRO 1, 2 and 3 (untied head, biases) with and without
accumulation, a mixture of experts with the loss of its routers, bf16, stops during evaluations, a
rank that computes wrongly, and the choice of a checkpoint by all ranks.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from finetune_api.run import RunConfig
from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.read import CheckpointReader
from finetune_trainer.data import order
from finetune_trainer.data.prepared import Rows
from finetune_trainer.export import model_export
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import gang, weights
from tests.trainer.checkpoints import flip_a_byte
from tests.trainer.conftest import MakeJob
from tests.trainer.launch import run_cases
from tests.trainer.silent import SilentReporter
from tests.trainer.test_packed_rows import separate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STAGES = (1, 2, 3)
PEAK, STEPS, ROWS_PER_STEP, SEED = 1e-3, 8, 4, 3
# Adam hides the scale of gradients. A large epsilon and a bound that some steps exceed show it.
EPSILON, BETAS, DECAY, MAX_NORM = 1e-3, (0.8, 0.95), 0.5, 1.2
# Two steps of warm-up, then half a cosine down to a tenth of the peak.
RATES = [1 / 3, 2 / 3, 1.0, 0.9140576475, 0.6890576475, 0.4109423525, 0.1859423525, 0.1]


@dataclass
class Launch:
    """The configurations and the results of a launch."""

    configs: dict[str, dict[str, Any]]
    results: dict[str, dict[str, Any]]

    def paths(self, name: str) -> RunPaths:
        return RunPaths.of(RunConfig.model_validate(self.configs[name]))

    def checkpoint(self, name: str) -> CheckpointReader:
        found = store.newest_valid(self.paths(name), "digest")
        assert found is not None
        assert found[1].step == STEPS
        return CheckpointReader(*found)


def training(precision: str) -> dict[str, Any]:
    return {
        "sequenceLength": 128,
        "maxSteps": STEPS,
        "seed": SEED,
        "precision": precision,
        "maxGradNorm": MAX_NORM,
        "optimizer": {
            "beta1": BETAS[0],
            "beta2": BETAS[1],
            "epsilon": EPSILON,
            "weightDecay": DECAY,
        },
    }


def make_qwen(folder: Path, tokenizer_from: Path) -> None:
    """Write a model with biases and an untied head, in fp32 so that rounding hides nothing."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    size = len(AutoTokenizer.from_pretrained(tokenizer_from))
    torch.manual_seed(5)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    save(model, folder, tokenizer_from)


def make_experts(folder: Path, tokenizer_from: Path) -> None:
    """Write a mixture of more experts than a rank's tokens reach in each pass."""
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(6)
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=len(AutoTokenizer.from_pretrained(tokenizer_from)),
            hidden_size=32,
            moe_intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_experts=64,
            num_experts_per_tok=2,
            router_aux_loss_coef=0.5,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("gate.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    save(model, folder, tokenizer_from)


def save(model: Any, folder: Path, tokenizer_from: Path) -> None:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer_from / name, folder / name)


@pytest.fixture(scope="module")
def launch(make_job: MakeJob) -> Launch:
    job = make_job()
    make_qwen(job.claim / "qwen", job.claim / "model")
    make_experts(job.claim / "experts", job.claim / "model")
    (job.storage / "cache").rename(job.claim / "cache")

    def config(name: str, stage: int, precision: str = "FP32", **plan: object) -> dict[str, Any]:
        return job.config | {
            "role": "worker",
            "attempt": 1,
            "mounts": {"w": str(job.claim)},
            "model": {"source": "pvc://w/qwen"},
            "checkpoints": {"storage": f"pvc://w/runs/{name}", "intervalSteps": 6},
            "cache": "pvc://w/cache",
            "runDigest": "digest",
            "training": training(precision),
            "plan": gang.make_plan(
                **{"zeroStage": stage, "learningRate": PEAK, "totalSteps": STEPS, **plan}
            ).to_dict(),
        }

    cases: list[dict[str, Any]] = []
    for stage in STAGES:
        cases.append({"name": f"fp32-{stage}", "config": config(f"fp32-{stage}", stage)})
        name = f"one-pass-{stage}"
        one_pass = config(name, stage, microBatchSize=2, gradientAccumulationSteps=1)
        cases.append({"name": name, "config": one_pass})
        bf16 = config(f"bf16-{stage}", stage, "BF16", totalSteps=1)
        cases.append({"name": f"bf16-{stage}", "config": bf16})
    for stage in (2, 3):
        experts = config(f"experts-{stage}", stage) | {"model": {"source": "pvc://w/experts"}}
        cases.append({"name": f"experts-{stage}", "config": experts})
    stopped = config("stopped", 2)
    cases += [
        {"name": "first", "config": stopped, "stopIn": ["Evaluating", 1]},
        {"name": "last", "config": stopped, "stopIn": ["Evaluating", 3]},
        {"name": "again", "config": stopped},
        *(
            {
                "name": f"spoiled-{stage}",
                "config": config(f"spoiled-{stage}", stage),
                "spoilRank": 1,
            }
            for stage in (1, 2)
        ),
    ]
    run_cases(job.claim, cases)
    shutil.copytree(job.claim / "runs/stopped", job.claim / "runs/damaged")
    damaged = config("damaged", 2)
    flip_a_byte(
        job.claim / "runs/damaged/checkpoints/step-00000008-e0001/rank-00001-of-00002.safetensors"
    )
    cases.append({"name": "choose", "config": damaged, "onlyChoose": True})
    run_cases(job.claim, cases[-1:])
    names = [case["name"] for case in cases]
    return Launch(
        {case["name"]: case["config"] for case in cases},
        {name: json.loads((job.claim / f"{name}.json").read_text()) for name in names},
    )


@dataclass
class Reference:
    """Results of plain torch: weights and moments by name, losses and gradient norms by step."""

    values: dict[str, dict[str, torch.Tensor]]
    losses: list[float]
    norms: list[float]
    router_losses: list[float]


@pytest.fixture(scope="module")
def reference(launch: Launch) -> Reference:
    found = plain_run(launch, "fp32-1")
    assert min(found.norms) < MAX_NORM < max(found.norms)  # otherwise the bound would not be tested
    return found


def plain_run(launch: Launch, name: str) -> Reference:
    """Train the model of a case with plain torch."""
    from transformers import AutoModelForCausalLM

    paths, config = launch.paths(name), launch.configs[name]
    model = AutoModelForCausalLM.from_pretrained(paths.model, attn_implementation="eager")
    rows = Rows(paths.prepared(config["preparedDigest"]), "train")
    named = dict(model.named_parameters())
    ends = ("embed_tokens.weight", "lm_head.weight")
    decayed = [p for name, p in named.items() if p.ndim > 1 and not name.endswith(ends)]
    others = [p for name, p in named.items() if p.ndim == 1 or name.endswith(ends)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}],
        betas=BETAS,
        eps=EPSILON,
        foreach=False,
    )
    losses, norms, router_losses = [], [], []
    coefficient = getattr(model.config, "router_aux_loss_coef", 0.0)
    for step, rate in enumerate(RATES):
        picked = order.Sequence((len(rows),), SEED).step(step * ROWS_PER_STEP, ROWS_PER_STEP)
        total, added, tokens = torch.zeros(()), torch.zeros(()), 0
        options = {"output_router_logits": True} if coefficient else {}
        for ids, labels in separate([rows[row] for row in picked]):
            output = model(input_ids=ids, use_cache=False, **options)
            total = total + cross_entropy(output.logits[0, :-1], labels[1:], reduction="sum")
            trained = int((labels != -100).sum())
            if coefficient:
                added = added + trained * coefficient * output.aux_loss
            tokens += trained
        optimizer.zero_grad()
        ((total + added) / tokens).backward()
        router_losses.append(float(added.detach()) / tokens)
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(named.values()), MAX_NORM)))
        losses.append(float(total.detach()) / tokens)
        for group in optimizer.param_groups:
            group["lr"] = PEAK * rate
        optimizer.step()
    values = {
        name: {"master": p.detach(), **{kind: optimizer.state[p][kind] for kind in KINDS}}
        for name, p in named.items()
    }
    return Reference(values, losses, norms, router_losses)


KINDS = ("exp_avg", "exp_avg_sq")


@pytest.mark.parametrize("name", ["fp32", "one-pass"], ids=["accumulated", "in-one-pass"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_has_the_losses_and_weights_of_plain_torch(
    stage: int, name: str, launch: Launch, reference: Reference
) -> None:
    assert_equal(launch, f"{name}-{stage}", reference)


@pytest.fixture(scope="module")
def experts(launch: Launch) -> Reference:
    return plain_run(launch, "experts-2")


@pytest.mark.parametrize("stage", [2, 3])
def test_experts_are_trained_as_in_plain_torch_with_the_loss_of_their_routers(
    stage: int, launch: Launch, experts: Reference
) -> None:
    steps = launch.results[f"experts-{stage}"]["steps"]
    assert [step["routerLoss"] for step in steps] == pytest.approx(experts.router_losses, abs=1e-5)
    assert_equal(launch, f"experts-{stage}", experts)


def assert_equal(launch: Launch, name: str, reference: Reference) -> None:
    steps = launch.results[name]["steps"]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert [step["learningRate"] / PEAK for step in steps] == pytest.approx(RATES, rel=1e-9)
    assert [step["trainLoss"] for step in steps] == pytest.approx(reference.losses, rel=1e-5)
    assert [step["gradNorm"] for step in steps] == pytest.approx(reference.norms, rel=1e-4)
    reader = launch.checkpoint(name)
    assert set(reader.names()) == set(reference.values)
    for parameter, kinds in reference.values.items():
        for kind, expected in kinds.items():
            found = reader.read(parameter, kind, 0, expected.numel())
            torch.testing.assert_close(
                found, expected.flatten(), rtol=1e-4 if kind in KINDS else 0, atol=1e-6
            )


def test_an_untied_head_and_biases_are_exported(launch: Launch) -> None:
    config = RunConfig.model_validate(launch.configs["fp32-3"])
    paths = RunPaths.of(config)
    model_export.run(config, paths, SilentReporter(), 1, STEPS)
    reader = launch.checkpoint("fp32-3")
    exported = dict(weights.load(paths.final).named_parameters())
    assert exported.keys() == set(reader.names()) >= {"lm_head.weight"}
    assert any(name.endswith("q_proj.bias") for name in exported)
    for name, parameter in exported.items():
        master = reader.read(name, "master", 0, parameter.numel())
        assert torch.equal(parameter.detach().flatten(), master), name


@pytest.mark.parametrize("stage", [1, 2])
def test_a_rank_whose_weights_differ_after_the_first_step_is_named(
    stage: int, launch: Launch
) -> None:
    found = launch.results[f"spoiled-{stage}"]
    assert found["code"] == 78
    assert (
        "after the first step the weights of rank 1 differ from those of rank 0"
        in (found["message"])
    )


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_accumulates_gradients_in_fp32(stage: int, launch: Launch) -> None:
    assert launch.results[f"bf16-{stage}"]["accumulation"] == "torch.float32"


def test_a_stop_does_not_wait_for_an_evaluation(launch: Launch) -> None:
    first, last, again = (launch.results[name] for name in ("first", "last", "again"))
    # During the first evaluation: no step is made, and the next attempt measures the baseline.
    assert (first["finished"], first["steps"], first["evaluation"]) == (False, [], {})
    # During the last evaluation: everything is saved, and the next attempt evaluates.
    assert len(last["steps"]) == STEPS
    assert last["evaluation"]["lastStep"] == 6  # with the checkpoint before the last one
    assert launch.checkpoint("last")
    assert (again["finished"], again["steps"]) == (True, [])
    assert again["evaluation"]["lastStep"] == STEPS
    assert again["evaluation"]["baseline"] == last["evaluation"]["baseline"]


def test_all_ranks_verify_a_share_and_choose_the_same_checkpoint(launch: Launch) -> None:
    found = launch.results["choose"]
    assert found["steps"] == [6, 6]
    assert min(found["advances"]) > 0
    assert max(found["advances"]) < 2 * (4 + 1)  # four files in each of two checkpoints
    marks = {p.parent.name for p in launch.paths("choose").checkpoints.glob("*/VERIFIED")}
    assert marks == {"step-00000006-e0001"}
