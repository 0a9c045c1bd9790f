"""What a resumed run must match, and that a trained run can always be exported later."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.run import PrepareResult, RunConfig
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.export import model_export
from finetune_trainer.prepare import inputs, preparation
from finetune_trainer.prepare.inputs import PreparedDigests
from finetune_trainer.run_dir import fence, records
from finetune_trainer.run_dir.paths import RunPaths
from finetune_trainer.tracking import run_log
from tests.trainer import exports, tiny
from tests.trainer.checkpoints import flip_a_byte, write_checkpoint
from tests.trainer.exports import Configure, edit
from tests.trainer.gang import make_plan
from tests.trainer.silent import SilentReporter

pytestmark = pytest.mark.slow  # a preparation for each case

Change = Callable[[Path], object]


@pytest.fixture
def config(configured: Configure) -> RunConfig:
    """Return a job that brings its own chat template."""
    made = configured()
    return made.replace(dataset=made.dataset.replace(chat_template={"inline": tiny.TEMPLATE}))


def run(config: RunConfig) -> PrepareResult:
    return preparation.run(config, SilentReporter())


def another(config: RunConfig) -> RunConfig:
    """Return a new job that continues the run of an ended one."""
    checkpoints = config.checkpoints.replace(on_existing="Resume")
    return config.replace(job_uid="uid-2", checkpoints=checkpoints, unfinished_owners=[])


def worker(config: RunConfig, prepared: PrepareResult, attempt: int) -> RunConfig:
    return config.replace(
        role="worker",
        attempt=attempt,
        plan=make_plan(),
        prepared_digest=prepared.prepared_digest,
        run_digest=prepared.run_digest,
    )


def begin(config: RunConfig) -> None:
    """Claim the fence as a gang that died long ago."""
    fence.claim(RunPaths.of(config), config.job_uid, 1)
    _let_time_pass(config)


def _let_time_pass(config: RunConfig) -> None:
    for file in RunPaths.of(config).storage.glob("fence.*"):
        os.utime(file, (0, 0))


def train(config: RunConfig, prepared: PrepareResult) -> None:
    """Write the last checkpoint of the run, as a gang would."""
    begin(config)
    masters = exports.trained(config)
    slices = [{f"{name}@0|master": master.flatten() for name, master in masters.items()}]
    paths = RunPaths.of(config)
    write_checkpoint(paths, exports.STEPS, slices=slices, run_digest=prepared.run_digest)


def export(config: RunConfig, attempt: int) -> Path:
    paths = RunPaths.of(config)
    epoch = fence.claim(paths, config.job_uid, attempt)
    model_export.run(config, paths, SilentReporter(), epoch, exports.STEPS)
    return paths.final


def set_generation(model: Path) -> None:
    edit(model / "generation_config.json", temperature=0.5, do_sample=True)


def rewrite_tokenizer_settings(model: Path) -> None:
    edit(model / "tokenizer_config.json", clean_up_tokenization_spaces=False)


# Files that the data of this job does not depend on.
SIDE_FILES: dict[str, Change] = {
    "generation settings": set_generation,
    "the template of the model": lambda model: (model / "chat_template.jinja").write_text("other"),
    "settings of the tokenizer": rewrite_tokenizer_settings,
    "special tokens": lambda model: (model / "special_tokens_map.json").write_text("{}"),
    "licence": lambda model: (model / "LICENSE").write_text("free"),
}


@pytest.mark.parametrize("change", SIDE_FILES.values(), ids=SIDE_FILES.keys())
def test_a_file_that_does_not_affect_training_may_change(
    config: RunConfig, claim: Path, change: Change
) -> None:
    first = run(config)
    begin(config)
    change(claim / "model")
    assert run(another(config)).run_digest == first.run_digest


TRAINED: dict[str, Change] = {
    "weights": lambda model: _change_a_weight(model / "model.safetensors"),
    "configuration": lambda model: edit(model / "config.json", rms_norm_eps=1e-4),
    "tokens": lambda model: edit(model / "tokenizer.json", normalizer={"type": "Lowercase"}),
    "data": lambda model: tiny.write_jsonl(
        model.parent / "data/train.jsonl", tiny.make_messages(60, 3)
    ),
    "validation data": lambda model: tiny.write_jsonl(
        model.parent / "data/validation.jsonl", tiny.make_messages(10, 3)
    ),
}


def _change_a_weight(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("change", TRAINED.values(), ids=TRAINED.keys())
def test_what_affects_training_must_not_change(
    config: RunConfig, claim: Path, change: Change
) -> None:
    if change is TRAINED["tokens"]:  # lower case makes a difference to these rows
        file = claim / "data/train.jsonl"
        file.write_text(file.read_text().replace("cat", "Cat"))
    run(config)
    begin(config)
    change(claim / "model")
    with pytest.raises(TrainerError) as caught:
        run(another(config))
    assert caught.value.reason == "StorageOccupied"


def test_the_digest_of_rows_is_found_again_without_reading_them(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(config)
    folder = RunPaths.of(config).prepared(first.prepared_digest)
    (folder / "train.tokens.u32").write_bytes(b"")
    monkeypatch.setattr(inputs, "check_weights", lambda *_: None)
    assert run(config).run_digest == first.run_digest


def test_data_that_an_earlier_version_prepared_gets_its_digest(config: RunConfig) -> None:
    first = run(config)
    folder = RunPaths.of(config).prepared(first.prepared_digest)
    (folder / "rows.digest").unlink()
    assert run(config).run_digest == first.run_digest
    assert (folder / "rows.digest").is_file()


def begin_under_an_earlier_version(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """Begin a run as an earlier version did. Return the digests of its rows and of the run."""
    found: list[PreparedDigests] = []

    def remember(*given: Any) -> PreparedDigests:
        found.append(inputs.digest_of_prepared_data(*given))
        return found[0]

    monkeypatch.setattr(preparation, "digest_of_prepared_data", remember)
    result = run(config)
    paths, rows = RunPaths.of(config), found[0].earlier
    paths.prepared(result.prepared_digest).rename(paths.prepared(rows))
    (paths.prepared(rows) / "rows.digest").unlink()
    digest = inputs.earlier_digest_of_run(
        result.model_revision, rows, config.dataset, config.training
    )
    owner = json.loads(paths.run_file.read_text())
    paths.run_file.write_text(json.dumps(owner | {"runDigest": digest}))
    begin(config)
    return rows, digest


@pytest.mark.parametrize("new_job", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_a_run_of_an_earlier_version_is_continued_with_its_rows(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, new_job: bool, kept: bool
) -> None:
    rows, digest = begin_under_an_earlier_version(config, monkeypatch)
    paths = RunPaths.of(config)
    if not kept:
        shutil.rmtree(paths.prepared(rows))
    for _ in range(2):  # the first prepare pod may have been killed at its end
        result = run(another(config) if new_job else config)
        assert result.run_digest == digest
        assert (result.prepared_digest == rows) == kept
        assert json.loads(paths.run_file.read_text())["runDigest"] == digest


# How the folder of the model may be damaged while the run trains.
DAMAGE: dict[str, Change] = {
    "generation settings": lambda m: (m / "generation_config.json").write_text("{"),
    "settings of the tokenizer": lambda m: (m / "tokenizer_config.json").write_text("{"),
    "no folder": lambda m: shutil.rmtree(m),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_trained_run_is_exported_after_its_files_were_corrected(
    config: RunConfig, claim: Path, tiny_model: Path, damage: Change
) -> None:
    prepared = run(config)
    train(config, prepared)
    damage(claim / "model")
    for attempt in range(2, 6):
        with pytest.raises(TrainerError):
            export(worker(config, prepared, attempt), attempt)
    shutil.copytree(tiny_model, claim / "model", dirs_exist_ok=True)
    set_generation(claim / "model")  # corrected, not restored
    rewrite_tokenizer_settings(claim / "model")

    _let_time_pass(config)
    job = another(config)
    again = run(job)
    assert again.run_digest == prepared.run_digest
    final = export(worker(job, again, 1), 1)
    assert json.loads((final / "generation_config.json").read_text())["temperature"] == 0.5


LOST: dict[str, tuple[Change, int, str]] = {
    "the model": (
        lambda claim: shutil.rmtree(claim / "model"),
        66,
        "pvc://w/model: this folder does not exist on the claim; check the path",
    ),
    "a weight file": (
        lambda claim: (claim / "model/model.safetensors").unlink(),
        66,
        "pvc://w/model: no weights, neither model.safetensors nor",
    ),
    "the prepared data": (
        lambda claim: shutil.rmtree(claim / "runs/a/cache/prepared"),
        66,
        "the prepared data: cannot be read (",
    ),
}
FINISH = (
    "; training is complete, and its checkpoint is kept: once the cause is removed, a new job with "
    "the same model, data and training and checkpoints.onExisting: Resume finishes the export"
)


@pytest.mark.parametrize(("lose", "code", "message"), LOST.values(), ids=LOST.keys())
def test_an_input_that_is_lost_before_the_export_is_named(
    config: RunConfig, claim: Path, lose: Change, code: int, message: str
) -> None:
    prepared = run(config)
    train(config, prepared)
    lose(claim)
    with pytest.raises(TrainerError) as caught:
        export(worker(config, prepared, 2), 2)
    assert caught.value.code == code, caught.value.message
    assert caught.value.message.startswith(message)
    assert caught.value.message.endswith(FINISH)


# A file that was damaged since preparation, and what the process of the export reports.
DAMAGED: dict[str, tuple[str, str, int, str]] = {
    "known": (
        "generation_config.json",
        "{",
        64,
        "generation_config.json of the base model is not JSON (Expecting property name",
    ),
    "unknown": ("tokenizer.json", "[]", 78, "the export failed ("),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text", "code", "found"), DAMAGED.values(), ids=DAMAGED.keys())
def test_the_process_of_the_export_says_why_it_failed_and_what_to_do(
    config: RunConfig, claim: Path, name: str, text: str, code: int, found: str
) -> None:
    prepared = run(config)
    train(config, prepared)
    (claim / "model" / name).write_text(text)
    reader, writer = os.pipe()
    env = {"FINETUNE_RUN": worker(config, prepared, 1).to_json(), "FINETUNE_CHANNEL": str(writer)}
    command = [sys.executable, "-m", "finetune_trainer.child", "export", "1", str(exports.STEPS)]
    done = subprocess.run(
        command, check=False, env=os.environ | env, pass_fds=[writer], capture_output=True
    )
    os.close(writer)
    with os.fdopen(reader) as messages:
        reported = [json.loads(line).get("error") for line in messages]
    (error,) = [one for one in reported if one]
    assert (done.returncode, error["code"]) == (code, code)
    assert error["message"].startswith(found)
    assert error["message"].endswith(FINISH)


def test_a_line_of_the_log_that_is_no_object_is_skipped(config: RunConfig) -> None:
    paths = RunPaths.of(config)
    paths.logs.mkdir(parents=True)
    paths.log(1).write_text('7\n[]\n{"part": "train", "step": 8, "loss": 2.5}\n{"part": "tr')
    assert run_log.train_loss(paths, 8) == 2.5


def test_a_run_that_is_trained_needs_room_for_its_model_only(
    config: RunConfig, claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = run(config)
    train(config, prepared)
    model = 2 * prepared.parameter_count  # bytes
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: (10**9, 10**9, model + 2 * 2**20))
        with pytest.raises(TrainerError, match="but this run needs"):
            run(another(config))  # nothing says that it is trained
    (claim / "model/generation_config.json").write_text("{")
    with pytest.raises(TrainerError):
        export(worker(config, prepared, 2), 2)
    set_up_again = {"eos_token_id": 1}
    (claim / "model/generation_config.json").write_text(json.dumps(set_up_again))
    _let_time_pass(config)
    for free, fits in ((model // 2, False), (model + 2 * 2**20, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: (10**9, 10**9, free))
        if fits:
            assert run(another(config)).run_digest == prepared.run_digest
        else:
            with pytest.raises(TrainerError, match=r"needs .* for its model"):
                run(another(config))


def test_a_run_whose_last_checkpoint_is_damaged_counts_as_not_trained(config: RunConfig) -> None:
    prepared = run(config)
    train(config, prepared)
    paths = RunPaths.of(config)
    export(worker(config, prepared, 2), 2)
    assert records.trained_step(paths) == exports.STEPS
    shutil.rmtree(paths.final)
    flip_a_byte(paths.checkpoint(exports.STEPS, 1) / "rank-00000-of-00001.safetensors")
    with pytest.raises(TrainerError):
        export(worker(config, prepared, 3), 3)
    assert records.trained_step(paths) is None
