"""Prepare pods as real processes, with inputs that are not on a claim; and the gang after them."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_api.run import PrepareResult
from tests.trainer import gang, hub, s3
from tests.trainer.gang import Job
from tests.trainer.hub import Hub
from tests.trainer.s3 import S3

pytestmark = pytest.mark.slow
TOKEN = "hf_the-secret-token"


@pytest.fixture
def served(claim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve the files of the claim as a private hub, named in the environment as by a Secret."""
    with hub.serve() as found:
        for kind, name in (("model", "tiny"), ("data", "chats")):
            shutil.copytree(claim / kind, tmp_path / name)
        repositories = [found.model("org/tiny"), found.dataset("org/chats")]
        for repository, name in zip(repositories, ("tiny", "chats"), strict=True):
            repository.token = TOKEN
            repository.commit(tmp_path / name)
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield found


@pytest.fixture
def stored(claim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """Serve the files of the claim as a bucket."""
    with s3.serve(tmp_path / "s3") as found:
        found.put_folder("bucket", "tiny", claim / "model")
        found.put_folder("bucket", "chats", claim / "data")
        for name, value in found.env.items():
            monkeypatch.setenv(name, value)
        yield found


def from_hub(claim: Path) -> Job:
    job = gang.make_job(claim)
    job.executed = True  # huggingface_hub reads its environment when it is imported
    job.config |= {
        "model": {"source": "hf://org/tiny", "credentialsSecretRef": {"name": "hf"}},
        "dataset": {
            "train": [{"source": "hf://org/chats", "credentialsSecretRef": {"name": "hf"}}],
            "validation": [{"source": "hf://org/chats", "split": "validation"}],
        },
    }
    return job


def from_bucket(claim: Path) -> Job:
    job = gang.make_job(claim)
    job.config |= {
        "model": {"source": "s3://bucket/tiny"},
        "dataset": {
            "train": [{"source": "s3://bucket/chats/train.jsonl"}],
            "validation": [{"source": "s3://bucket/chats/valid*.jsonl"}],
        },
    }
    return job


def prepared(job: Job, storage: str) -> PrepareResult:
    job.config["checkpoints"] = {"storage": f"pvc://w/runs/{storage}", "intervalSteps": 2}
    pod = job.prepare()
    assert pod.wait() == 0, pod.log.read_text()
    found = pod.result.prepared
    assert found is not None
    return found


def test_equal_files_have_the_same_digests_from_any_source(
    claim: Path, served: Hub, stored: S3
) -> None:
    makers: dict[str, Callable[[Path], Job]] = {
        "pvc": gang.make_job,
        "hf": from_hub,
        "s3": from_bucket,
    }
    found = {name: prepared(make(claim), name) for name, make in makers.items()}
    assert len({result.prepared_digest for result in found.values()}) == 1
    assert len({result.run_digest for result in found.values()}) == 1
    commit = served.repositories["models/org/tiny"].refs["main"]
    assert found["hf"].model_revision == commit
    assert (claim / "runs/hf/cache/models" / commit / "config.json").is_file()
    assert found["s3"].model_revision in {p.name for p in claim.glob("runs/s3/cache/models/*")}
    assert found["pvc"].model_revision not in (commit, found["s3"].model_revision)


def test_a_gang_reads_the_cache_and_sends_no_request(claim: Path, served: Hub) -> None:
    job = from_hub(claim)
    job.nodes = 1
    try:
        first = job.prepare()
        assert first.wait() == 0, job.log
        assert TOKEN not in first.log.read_text() + first.termination.read_text()
        assert "HTTP Request" not in first.log.read_text()
        served.requests.clear()
        job.start(gang.make_plan(totalSteps=2, gradientAccumulationSteps=4, warmupSteps=0))
        assert job.wait() == [0], job.log
        assert served.requests == []
        assert (job.storage / "final/model.safetensors").is_file()
        for path in (path for path in claim.rglob("*") if path.is_file()):
            assert TOKEN.encode() not in path.read_bytes(), path
    finally:
        job.kill()


def test_a_cache_that_was_emptied_while_the_job_ran_is_named(claim: Path, served: Hub) -> None:
    job = from_hub(claim)
    job.nodes = 1
    try:
        assert job.prepare().wait() == 0, job.log
        shutil.rmtree(job.storage / "cache/models")
        job.start(gang.make_plan())
        assert job.wait() == [66], job.log
        message = job.pods[0].result.message
        assert message.startswith("hf://org/tiny: pvc://w/runs/a/cache/models/")
        assert "is gone; keep the cache while a job runs" in message
    finally:
        job.kill()


def test_a_model_that_is_not_computed_exactly_is_refused_before_its_weights_are_downloaded(
    claim: Path, served: Hub, tmp_path: Path
) -> None:
    config = tmp_path / "tiny/config.json"
    values = json.loads(config.read_text())
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config.write_text(json.dumps(values | {"rope_parameters": rope}))
    served.repositories["models/org/tiny"].commit(tmp_path / "tiny")
    served.requests.clear()
    pod = from_hub(claim).prepare()
    assert pod.wait() == 64, pod.log.read_text()
    assert pod.result.message.startswith(
        "hf://org/tiny: the architecture LlamaForCausalLM is not supported with this config.json: "
        "its RoPE (dynamic) depends on the length of the input, and rows have up to 128 tokens;"
    )
    assert any("config.json" in request for request in served.contents())
    assert not any("safetensors" in request for request in served.contents())


def test_a_job_without_a_hub_address_sends_no_request_to_the_hub(
    claim: Path, served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = gang.make_job(claim)
    job.executed = True
    assert job.prepare().wait() == 0
    assert served.requests == []


def test_a_gated_model_ends_the_prepare_pod_with_77(claim: Path, served: Hub) -> None:
    served.repositories["models/org/tiny"].gated = True
    job = from_hub(claim)
    pod = job.prepare()
    assert pod.wait() == 77
    assert pod.result.reason == "NotPermitted"
    assert pod.result.message.startswith("hf://org/tiny: gated; ask for access")


def test_a_stop_during_a_download_keeps_the_downloaded_bytes(claim: Path, served: Hub) -> None:
    served.stall_after = 50_000
    job = from_hub(claim)
    pod = job.start_prepare()
    try:
        parts = claim / "runs/a/cache/models"
        wait_for(lambda: list(parts.glob(".downloading-uid-1-*/model.safetensors.part")))
        pod.terminate()
        assert pod.wait(60) == 75, pod.log.read_text()
        assert list(parts.glob(".downloading-uid-1-*/config.json"))
        assert list(parts.glob(".downloading-uid-1-*/model.safetensors.part"))
    finally:
        job.kill()


def wait_for(check: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)
