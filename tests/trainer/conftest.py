"""What the trainer's tests share: one tiny model a session, claims made of folders."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from tests.trainer import gang, tiny

# Before torch is imported anywhere: gangs and tests share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that tests copy and never change."""
    return tiny.make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def plain_tokenizer():
    """Its template has no generation markers."""
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def marked_tokenizer():
    """Its template marks what the assistant generates, the stop token included."""
    return tiny.make_tokenizer(tiny.MARKED_TEMPLATE)


@pytest.fixture
def make_claim(tiny_model: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a claim with the model, 60 training conversations and 10 held-out ones."""

    def make(name: str = "claim") -> Path:
        claim = tmp_path / name
        shutil.copytree(tiny_model, claim / "model")
        tiny.write_jsonl(claim / "data/train.jsonl", tiny.make_messages(60, 1))
        tiny.write_jsonl(claim / "data/validation.jsonl", tiny.make_messages(10, 2))
        return claim

    return make


@pytest.fixture
def claim(make_claim: Callable[[], Path]) -> Path:
    """A claim of one's own."""
    return make_claim()


@pytest.fixture
def configured(claim: Path) -> Callable[..., RunConfig]:
    """Makes the prepare pod's configuration over `claim`, some keys replaced."""

    def make(**changes: object) -> RunConfig:
        config = gang.make_job(claim).config | {"role": "prepare", "mounts": {"w": str(claim)}}
        return RunConfig.model_validate(config | changes)

    return make


MakeJob = Callable[..., gang.Job]


@pytest.fixture(scope="session")
def prepared_claim(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> gang.Job:
    """A job that was prepared and never started: others copy its claim."""
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
    """Makes prepared jobs over claims of their own; nothing of them is left running.

    A job whose training differs keeps the run digest: workers compare it and never make it.
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
    """The run that nothing happened to, by ZeRO stage; run once, for all test processes."""
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
            # Its bits are compared with those of attempts that were forked.
            job.executed = stage == 1
            job.start(gang.make_plan(zeroStage=stage))
            assert job.wait() == [0, 0], job.log
            file.write(gang.remember(job))
            return job

    return run
