"""Undisturbed runs of real gangs: two pods, DeepSpeed, gloo, files."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finetune_api.names import RESULT_MAX_BYTES
from finetune_api.storage import AttemptFile
from finetune_trainer.checkpoint import store
from tests.trainer import gang, weights
from tests.trainer.conftest import MakeJob

STAGES = [
    pytest.param(1, marks=pytest.mark.slow),
    2,
    pytest.param(3, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_learns_saves_and_exports(
    stage: int, undisturbed: Callable[[int], gang.Job], tiny_model: Path
) -> None:
    job = undisturbed(stage)
    result = job.pods[0].result
    assert (result.outcome, result.reason, result.message) == ("Succeeded", "Completed", "")

    assert result.progress is not None
    assert (result.progress.step, result.progress.skipped_steps) == (40, 0)
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)$", job.log, re.MULTILINE)]
    assert losses[-1] < losses[0] - 0.2
    measured = result.evaluation
    assert measured is not None
    assert measured.baseline is not None
    assert measured.last is not None
    assert measured.last < measured.baseline - 0.2
    assert measured.last_step == gang.STEPS

    model = weights.load(tiny_model)
    parameters = sum(p.numel() for p in model.parameters())
    # The best one is also kept, whatever its step is.
    assert [(c.step, c.verified, c.world_size) for c in result.checkpoints[:2]] == [
        (40, True, 2),
        (36, True, 2),
    ]
    assert result.checkpoints[2:] == [
        c for c in result.checkpoints[2:] if c.step == measured.best_step
    ]
    for record in result.checkpoints:
        assert 12 * parameters < record.size_bytes < 12 * parameters + 40_000  # headers, rng
    found = sorted(path.name for path in (job.storage / "checkpoints").iterdir())
    assert found == sorted(record.location.split("/")[-1] for record in result.checkpoints)
    assert store.newest_valid(weights.paths_of(job), job.config["runDigest"]) is not None

    exported = weights.final(job)
    for name, master in weights.masters(job).items():
        assert torch.equal(exported[name].flatten(), master.to(torch.bfloat16))
    for layer in range(model.config.num_hidden_layers):
        for name, base in model.named_parameters():
            if f"layers.{layer}." in name and base.ndim > 1:
                assert not torch.equal(exported[name], base), name
    assert result.output is not None
    assert result.output.verified
    assert result.output.location == "pvc://w/runs/a/final"


def test_the_exported_folder_is_complete_and_readable(
    undisturbed: Callable[[int], gang.Job], tiny_model: Path
) -> None:
    from transformers import AutoTokenizer

    final = undisturbed(2).storage / "final"
    files = {path.name: path for path in final.iterdir()}
    assert files.keys() == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "export.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o644}
    assert json.loads(files["config.json"].read_text())["dtype"] == "bfloat16"
    assert "Full" not in files["README.md"].read_text().splitlines()[0]
    assert "`pvc://w/data/train.jsonl`: 60 examples" in files["README.md"].read_text()
    chat = [{"role": "user", "content": "the cat"}]
    mine, base = (AutoTokenizer.from_pretrained(folder) for folder in (final, tiny_model))
    assert mine.apply_chat_template(chat) == base.apply_chat_template(chat)


def test_the_other_pod_succeeds_without_checkpoints_and_output(
    undisturbed: Callable[[int], gang.Job],
) -> None:
    result = undisturbed(2).pods[1].result
    assert (result.outcome, result.output, result.checkpoints) == ("Succeeded", None, [])


def test_the_exported_model_computes_the_same_logits_as_the_checkpoint(
    undisturbed: Callable[[int], gang.Job],
) -> None:
    job = undisturbed(2)
    exported = weights.load(job.storage / "final")
    trained = weights.load(job.claim / "model", dtype=torch.bfloat16)
    for name, master in weights.masters(job).items():
        parameter = trained.get_parameter(name)
        parameter.data.copy_(master.reshape(parameter.shape))
    tokens = torch.arange(200).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(exported(tokens).logits, trained(tokens).logits)


def test_a_job_without_trackers_writes_tensorboard_files(
    undisturbed: Callable[[int], gang.Job],
) -> None:
    (file,) = (undisturbed(2).storage / "tensorboard" / "job").iterdir()
    assert file.name.startswith("events.out.tfevents.")


def test_the_attempt_is_recorded_on_storage(undisturbed: Callable[[int], gang.Job]) -> None:
    job = undisturbed(2)
    record = AttemptFile.model_validate_json((job.storage / "attempts/1.json").read_text())
    assert (record.epoch, record.attempt, record.job_uid) == (1, 1, "uid-1")
    assert (record.outcome, record.reason) == ("Succeeded", "Completed")
    assert (record.ledger.first_step, record.ledger.highest_step) == (0, gang.STEPS)
    assert record.ledger.productive_seconds > 0
    assert record.ledger.redone_seconds == 0


def test_every_line_of_the_log_has_a_time_and_its_process(
    undisturbed: Callable[[int], gang.Job],
) -> None:
    first, second = (pod.log.read_text() for pod in undisturbed(2).pods)
    stamped = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
    for line in first.splitlines():
        assert re.match(stamped + r"\[(rank 0|export|supervisor)\] \S", line), line
    for part in ("attempt 1, 2 ranks, ZeRO stage 2", "step 1 of 40, loss", "validation loss",
                 f"saved a checkpoint of step {gang.STEPS}", "exported pvc://"):  # fmt: skip
        assert part in first
    assert second == ""


def test_termination_messages_are_within_the_limit(undisturbed: Callable[[int], gang.Job]) -> None:
    for pod in undisturbed(2).pods:
        assert 0 < len(pod.termination.read_bytes()) <= RESULT_MAX_BYTES


@pytest.mark.slow
async def test_reports_identify_their_pod_and_advance(make_job: MakeJob) -> None:
    job = make_job()
    job.start(gang.make_plan())
    job.wait_for_step(2)
    first = await job.pods[0].report()
    other = await job.pods[1].report()
    job.wait_for_text("saved a checkpoint of step 4")
    second = await job.pods[0].report()
    assert [(r.job_uid, r.attempt, r.worker_index) for r in (first, second, other)] == [
        ("uid-1", 1, 0),
        ("uid-1", 1, 0),
        ("uid-1", 1, 1),
    ]
    assert second.sequence > first.sequence
    assert second.activity > first.activity
    assert first.progress is not None
    assert second.progress is not None
    assert second.progress.step > first.progress.step
    assert second.checkpoints
    assert second.checkpoints[0].verified
    assert other.progress is None
    job.kill()


@pytest.mark.slow
def test_two_processes_learn_the_same_weights_as_one(make_job: MakeJob) -> None:
    """In fp32, with the same global batch and a short last step: only the order of sums differs."""
    jobs = []
    for nodes, micro in ((2, 1), (1, 2)):
        job = make_job(training={"precision": "FP32", "maxSteps": None, "epochs": 0.7})
        job.nodes = nodes
        rows = 0.7 * job_rows(job)
        steps = -(-rows // 4)
        job.start(gang.make_plan(totalSteps=int(steps), microBatchSize=micro))
        assert job.wait() == [0] * nodes, job.log
        jobs.append(job)
    one, two = (weights.masters(job) for job in jobs)
    torch.testing.assert_close(one, two, rtol=0, atol=2e-6)
    moved = weights.load(jobs[0].claim / "model").float()
    assert all(
        (one[name] - base.detach().flatten()).abs().max() > 1e-4
        for name, base in moved.named_parameters()
    )
    exported = weights.final(jobs[0])
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}  # as the base


def job_rows(job: gang.Job) -> int:
    from finetune_trainer.data.prepared import Rows

    return len(Rows(weights.paths_of(job).prepared(job.config["preparedDigest"]), "train"))
