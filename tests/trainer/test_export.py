"""The export of checkpoint files, in this process."""

import errno
import json
import shutil

import pytest
import torch

from finetune_api.run import RunConfig
from finetune_trainer.checkpoint import store
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.export import model_export
from finetune_trainer.run_dir import fence
from finetune_trainer.run_dir.paths import RunPaths
from tests.trainer import exports, tiny, weights
from tests.trainer.checkpoints import flip_a_byte
from tests.trainer.exports import Configure, run
from tests.trainer.silent import SilentReporter


@pytest.fixture
def config(configured: Configure) -> RunConfig:
    """Return a run with two checkpoints, the second of the last step."""
    made = exports.make_run(configured)
    masters = exports.trained(made)
    exports.save(made, masters, 4)
    exports.save(made, masters, 8)
    return made


def refusal(config: RunConfig, epoch: int = 1) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        run(config, epoch)
    return caught.value


def test_large_models_are_exported_in_shards(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights.load(run(config).final).state_dict()
    shutil.rmtree(RunPaths.of(config).final)
    monkeypatch.setattr(model_export.weights, "SHARD_BYTES", 60_000)
    final = run(config).final
    assert len(list(final.glob("model-*-of-*.safetensors"))) > 2
    sharded = weights.load(final).state_dict()
    assert all(torch.equal(sharded[name], tensor) for name, tensor in expected.items())


def test_an_export_is_done_once(config: RunConfig) -> None:
    before = (run(config).final / "model.safetensors").stat().st_mtime_ns
    assert (run(config).final / "model.safetensors").stat().st_mtime_ns == before


def test_an_export_without_its_weights_is_repeated(config: RunConfig) -> None:
    (run(config).final / "model.safetensors").unlink()
    assert (run(config).final / "model.safetensors").is_file()


def test_an_export_of_another_run_is_replaced(config: RunConfig) -> None:
    final = run(config).final
    (final / "export.json").write_text(
        '{"jobUid": "x", "runDigest": "y", "step": 1, "sizeBytes": 1}'
    )
    (final / "left-over.bin").write_text("x")
    run(config)
    assert not (final / "left-over.bin").exists()


def test_a_fenced_attempt_publishes_nothing(config: RunConfig) -> None:
    paths = RunPaths.of(config)
    fence.claim(paths, config.job_uid, 2)
    assert refusal(config).code == 79
    assert not list(paths.storage.glob("final*"))


def test_two_gangs_never_write_the_same_files(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old gang is paused after it checked the fence, until the new gang has published."""
    paths = RunPaths.of(config)
    check = fence.check
    published = []

    def pause(paths: RunPaths, epoch: int, attempt: int) -> None:
        check(paths, epoch, attempt)
        monkeypatch.setattr(fence, "check", check)
        newer = config.replace(attempt=2)
        assert fence.claim(paths, config.job_uid, 2) == 2
        model_export.run(newer, paths, SilentReporter(), 2, exports.STEPS)
        published.append((paths.final / "model.safetensors").stat())

    monkeypatch.setattr(fence, "check", pause)
    run(config)
    assert (paths.final / "model.safetensors").stat() == published[0]
    assert weights.load(paths.final)


@pytest.mark.parametrize("left", [8, 4], ids=["the older one is valid", "none is valid"])
def test_a_run_without_a_valid_last_checkpoint_is_not_exported(
    config: RunConfig, left: int
) -> None:
    paths = RunPaths.of(config)
    for step in (8, 4)[: 1 if left == 8 else 2]:
        flip_a_byte(paths.checkpoint(step, 1) / "rank-00000-of-00002.safetensors")
    error = refusal(config)
    assert (error.code, error.reason) == (78, "CheckpointDamaged")
    found = "the newest valid one is of step 4" if left == 8 else "no other is valid"
    assert error.message == (
        f"pvc://w/runs/a: the checkpoint of the last step (8) is damaged or missing, {found}; "
        "the next attempt trains the rest again"
    )
    assert not paths.final.exists()
    # The next attempt does not resume from a damaged one.
    assert [r.verified for r in store.records(paths)] == [False, left == 8]


def test_an_error_of_storage_names_the_storage(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_export.weights.tensor_file, "write_pieces", full)
    error = refusal(config)
    assert error.code == 73
    assert error.message.startswith("pvc://w/runs/a: the model could not be written ([Errno 28]")
    assert not list(RunPaths.of(config).storage.glob("final*"))


def test_partial_exports_of_older_gangs_are_removed_and_of_newer_ones_kept(
    config: RunConfig,
) -> None:
    paths = RunPaths.of(config)
    assert fence.claim(paths, config.job_uid, 1) == 2
    for epoch in (1, 3):
        (paths.storage / f"final.tmp-{epoch}").mkdir()
    model_export.run(config, paths, SilentReporter(), 2, exports.STEPS)
    assert sorted(path.name for path in paths.storage.glob("final*")) == ["final", "final.tmp-3"]


def test_the_chat_template_of_the_training_is_saved_in_both_places(config: RunConfig) -> None:
    from transformers import AutoTokenizer

    paths = RunPaths.of(config)
    template = "{{ 'ä' }}" + tiny.TEMPLATE
    (paths.prepared("data") / "chat_template.jinja").write_text(template, encoding="utf-8")
    run(config)
    assert (paths.final / "chat_template.jinja").read_text(encoding="utf-8") == template
    settings = json.loads((paths.final / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["chat_template"] == template
    before = json.loads((paths.model / "tokenizer_config.json").read_text())
    assert settings == before | {"chat_template": template}
    assert AutoTokenizer.from_pretrained(paths.final).chat_template == template
