"""Fixtures of the trainer's tests: a tiny model, claims that are folders, prepared jobs."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from tests.trainer import gang, tiny

# Must be set before torch is imported: gangs and tests share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, which tests copy and never change."""
    return tiny.make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def plain_tokenizer():
    """A tokenizer whose template has no generation markers."""
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def marked_tokenizer():
    """A tokenizer whose template marks what the assistant generates, with the stop token."""
    return tiny.make_tokenizer(tiny.MARKED_TEMPLATE)


@pytest.fixture
def make_claim(tiny_model: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes claims with the model, 60 training conversations and 10 validation conversations."""

    def make(name: str = "claim") -> Path:
        claim = tmp_path / name
        shutil.copytree(tiny_model, claim / "model")
        tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(60, 1))
        tiny.write_jsonl(claim / "data/validation.jsonl", tiny.make_messages(10, 2))
        return claim

    return make


@pytest.fixture
def claim(make_claim: Callable[[], Path]) -> Path:
    """A claim for one test."""
    return make_claim()


@pytest.fixture
def configured(claim: Path) -> Callable[..., RunConfig]:
    """Makes the configuration of a prepare pod with `claim`, with some fields changed."""

    def make(**changes: object) -> RunConfig:
        config = gang.make_job(claim).config | {"role": "prepare", "mounts": {"w": str(claim)}}
        return RunConfig.model_validate(config | changes)

    return make


MakeJob = Callable[..., gang.Job]


@pytest.fixture(scope="session")
def prepared_claim(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> gang.Job:
    """A job that is prepared and not started. Other jobs copy its claim."""
    claim = tmp_path_factory.mktemp("prepared") / "claim"
    shutil.copytree(tiny_model, claim / "model")
    tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(60, 1))
    tiny.write_jsonl(claim / "data/validation.jsonl", tiny.make_messages(10, 2))
    job = gang.make_job(claim)
    assert job.prepare().wait() == 0
    return job


@pytest.fixture(scope="session")
def make_job(
    prepared_claim: gang.Job, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeJob]:
    """Makes prepared jobs, each with its own claim, and kills their pods in the end.

    A job with another training keeps the run digest, which workers compare and do not compute.
    """
    jobs: list[gang.Job] = []

    def make(**options: dict) -> gang.Job:
        claim = tmp_path_factory.mktemp("job") / "claim"
        shutil.copytree(prepared_claim.claim, claim)
        job = gang.make_job(claim, **options)
        job.config |= {k: prepared_claim.config[k] for k in ("preparedDigest", "runDigest")}
        jobs.append(job)
        return job

    yield make
    for job in jobs:
        job.kill()


@pytest.fixture(scope="session")
def undisturbed(
    make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], gang.Job]:
    """Returns the undisturbed run of a ZeRO stage, which runs once for all test processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def run(stage: int) -> gang.Job:
        with (folder / f"undisturbed-{stage}.json").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            if text := file.read():
                return gang.recall(text)
            job = make_job()
            # Its bits are compared with those of forked attempts.
            job.executed = stage == 1
            job.start(gang.make_plan(zeroStage=stage))
            assert job.wait() == [0, 0], job.log
            file.write(gang.remember(job))
            return job

    return run
