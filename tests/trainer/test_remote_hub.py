"""hf://: models and data sets of a hub that these tests serve, in a process as in a pod."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.model.folder import inspect
from tests.trainer import hub as hubs
from tests.trainer import tiny
from tests.trainer.download import Download
from tests.trainer.hub import Hub

pytestmark = pytest.mark.slow
TOKEN = "hf_the-secret-token"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hubs.serve() as found:
        yield found


@pytest.fixture
def download(hub: Hub, tmp_path: Path) -> Download:
    claim = tmp_path / "claim"
    claim.mkdir()
    return Download(claim, {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")})


@pytest.fixture
def repository(tiny_model: Path, tmp_path: Path) -> Path:
    """Return the tiny model as a repository, with files that are not needed."""
    folder = tmp_path / "repository"
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text("# Tiny")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('code of a repository was run')")
    for name in ("pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 50_000)
    return folder


def names(folder: str) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def test_a_model_is_downloaded_once_at_the_commit_of_its_branch(
    hub: Hub, download: Download, repository: Path, tiny_model: Path
) -> None:
    commit = hub.model("org/tiny").commit(repository)
    found = download.model("hf://org/tiny")
    assert found["revision"] == commit
    assert found["folder"] == str(download.claim / "cache/models" / commit)
    assert names(found["folder"]) == {p.name for p in tiny_model.iterdir()} | {"README.md"}
    for file in tiny_model.iterdir():
        assert (Path(found["folder"]) / file.name).read_bytes() == file.read_bytes()
    assert found["advanced"] >= (tiny_model / "model.safetensors").stat().st_size
    assert "100 % of" in download.output[0]
    assert "MB/s" in download.output[0]
    before = len(hub.contents())
    assert download.model("hf://org/tiny")["revision"] == commit
    assert len(hub.contents()) == before


def test_a_moved_branch_is_another_model_and_a_commit_is_always_the_same(
    hub: Hub, download: Download, repository: Path, tmp_path: Path
) -> None:
    first = hub.model("org/tiny").commit(repository)
    hub.model("org/tiny").refs["v1"] = first
    newer = tmp_path / "newer"
    shutil.copytree(repository, newer)
    (newer / "chat_template.jinja").write_text(tiny.MARKED_TEMPLATE)
    second = hub.model("org/tiny").commit(newer)
    assert download.model("hf://org/tiny", revision="v1")["revision"] == first
    assert download.model("hf://org/tiny")["revision"] == second
    hub.requests.clear()
    assert download.model("hf://org/tiny", revision=first)["revision"] == first
    assert hub.requests == []
    assert len(list((download.claim / "cache/models").iterdir())) == 2


def test_a_folder_of_a_repository(
    hub: Hub, download: Download, repository: Path, tmp_path: Path
) -> None:
    shutil.copytree(repository, tmp_path / "outer/small/v2")
    commit = hub.model("org/several").commit(tmp_path / "outer")
    found = download.model("hf://org/several/small/v2")
    assert found["revision"] == commit
    assert Path(found["folder"]).name.startswith(f"{commit}-")
    assert "model.safetensors" in names(found["folder"])


def test_weights_in_several_files_are_those_that_the_index_names(
    hub: Hub, download: Download, tmp_path: Path, tiny_model: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model-00009-of-00009.safetensors").write_bytes(b"leftover")
    hub.model("org/tiny").commit(folder)
    found = download.model("hf://org/tiny")
    assert "model-00009-of-00009.safetensors" not in names(found["folder"])
    assert inspect(Path(found["folder"]), "x", lambda: None).parameter_count == sum(
        p.numel() for p in model.parameters()
    )


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, str], int, str]] = {
    "missing, with a token": (
        "hf://org/absent",
        {},
        {"HF_TOKEN": "valid"},
        66,
        "no such repository",
    ),
    "missing or private": ("hf://org/absent", {}, {}, 77, "or a private one; check the name, or"),
    "private": (
        "hf://org/private",
        {},
        {},
        77,
        "credentialsSecretRef: a Secret with the key HF_TOK",
    ),
    "wrong token": ("hf://org/tiny", {}, {"HF_TOKEN": "wrong"}, 77, "the token is not valid"),
    "gated": ("hf://org/gated", {}, {}, 77, "gated; ask for access on its page"),
    "gated, token": ("hf://org/gated", {}, {"HF_TOKEN": "valid"}, 77, "gated; ask for access"),
    "revision": ("hf://org/tiny", {"revision": "v9"}, {}, 66, "(revision v9): no such revision"),
    "commit": ("hf://org/tiny", {"revision": "0" * 40}, {}, 66, "no such revision"),
    "folder": ("hf://org/tiny/absent", {}, {}, 66, "no weights model.safetensors; found nothing"),
    "no weights": ("hf://org/texts", {}, {}, 66, "no weights model.safetensors; found config.json"),
    "offline": ("hf://org/tiny", {}, {"HF_HUB_OFFLINE": "1"}, 66, "HF_HUB_OFFLINE forbids"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_model_is_reported_with_a_remedy(
    hub: Hub, download: Download, repository: Path, tmp_path: Path, case: Any
) -> None:
    source, changes, env, code, message = case
    for name in ("org/tiny", "org/private", "org/gated"):
        hub.model(name).commit(repository)
    hub.model("org/private").token = TOKEN
    hub.model("org/gated").gated = True
    (tmp_path / "texts").mkdir()
    shutil.copy(repository / "config.json", tmp_path / "texts")
    hub.model("org/texts").commit(tmp_path / "texts")
    download.env |= env
    found = download.model(source, **changes)
    assert found["code"] == code, found
    assert message in found["message"]
    assert found["message"].startswith(source)
    assert found["message"].count(";") >= 1  # a remedy


def test_a_token_opens_a_private_model_and_is_never_shown(
    hub: Hub, download: Download, repository: Path
) -> None:
    hub.model("org/private").commit(repository)
    hub.model("org/private").token = TOKEN
    download.env["HF_TOKEN"] = TOKEN
    assert "folder" in download.model("hf://org/private")
    hub.failures = [503] * 99
    shutil.rmtree(download.claim / "cache")
    assert download.model("hf://org/private")["code"] == 78
    everything = "".join(download.output) + "".join(
        path.read_text(errors="replace") for path in download.claim.rglob("*") if path.is_file()
    )
    assert TOKEN not in everything


def test_a_token_is_not_sent_to_a_server_that_the_hub_redirects_to(
    hub: Hub, download: Download, repository: Path
) -> None:
    hub.model("org/private").commit(repository)
    hub.model("org/private").token = TOKEN
    download.env["HF_TOKEN"] = TOKEN
    with hubs.serve() as cdn:
        cdn.model("org/private").commit(repository)
        hub.cdn = cdn.url
        assert "folder" in download.model("hf://org/private")
        assert any("model.safetensors" in request for request in cdn.contents())
        assert cdn.tokens_seen == {""}
    assert hub.tokens_seen == {TOKEN}


def test_a_busy_hub_is_retried_and_an_unreachable_one_ends_the_attempt(
    hub: Hub, download: Download, repository: Path
) -> None:
    hub.model("org/tiny").commit(repository)
    hub.failures = [503, 429, 500]
    assert "folder" in download.model("hf://org/tiny")
    shutil.rmtree(download.claim / "cache")
    download.env["HF_ENDPOINT"] = "http://127.0.0.1:9"
    found = download.model("hf://org/tiny")
    assert (found["code"], found["reason"]) == (78, "NetworkTrouble")
    assert "hf://org/tiny (revision main): cannot be reached" in found["message"]


def test_a_broken_transfer_is_resumed(
    hub: Hub, download: Download, repository: Path, tiny_model: Path
) -> None:
    hub.model("org/tiny").commit(repository)
    hub.cut_after = [30_000, 20_000]
    found = download.model("hf://org/tiny")
    assert hub.ranges
    assert all(wanted != "bytes=0-" for wanted in hub.ranges)
    weights = Path(found["folder"]) / "model.safetensors"
    assert weights.read_bytes() == (tiny_model / "model.safetensors").read_bytes()


def test_a_killed_download_is_resumed(hub: Hub, download: Download, repository: Path) -> None:
    hub.model("org/tiny").commit(repository)
    size = (repository / "model.safetensors").stat().st_size
    hub.stall_after = size // 2
    process = download.start("model", download.config(model={"source": "hf://org/tiny"}))
    partial = wait_for_partial(download.claim)
    process.kill()
    process.communicate()
    assert partial.parent.name.startswith(".downloading-uid-1-")
    kept = partial.stat().st_size
    hub.stall_after = None
    hub.ranges.clear()
    found = download.model("hf://org/tiny")
    assert f"bytes={kept}-" in hub.ranges
    weights = Path(found["folder"]) / "model.safetensors"
    assert weights.read_bytes() == (repository / "model.safetensors").read_bytes()
    assert [p.name for p in (download.claim / "cache/models").iterdir()] == [found["revision"]]


def wait_for_partial(claim: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in claim.glob("cache/models/.downloading-*/model.safetensors.part"):
            if path.stat().st_size:
                return path
        time.sleep(0.02)
    raise AssertionError("nothing was downloaded")


def test_damaged_contents_are_downloaded_again(
    hub: Hub, download: Download, repository: Path
) -> None:
    hub.model("org/tiny").commit(repository)
    hub.flip = 1
    found = download.model("hf://org/tiny")
    weights = Path(found["folder"]) / "model.safetensors"
    assert weights.read_bytes() == (repository / "model.safetensors").read_bytes()
    shutil.rmtree(download.claim / "cache")
    hub.flip = 99
    found = download.model("hf://org/tiny")
    assert (found["code"], found["reason"]) == (78, "DamagedDownload")


def test_two_jobs_can_download_the_same_model_at_once(
    hub: Hub, download: Download, repository: Path
) -> None:
    commit = hub.model("org/tiny").commit(repository)
    download.env["TEST_SLOWLY"] = "0.02"
    other = Download(download.claim, download.env, uid="uid-2")
    config = {"model": {"source": "hf://org/tiny"}}
    running = [each.start("model", each.config(**config)) for each in (download, other)]
    results = [download.end(process) for process in running]
    assert {result["revision"] for result in results} == {commit}
    assert [p.name for p in (download.claim / "cache/models").iterdir()] == [commit]


def fill_cache(home: Path, kind: str, name: str, commit: str, folder: Path) -> None:
    """Fill the cache of huggingface_hub as `hf download` does: blobs, and links to them."""
    root = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    for file in (path for path in folder.rglob("*") if path.is_file()):
        blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = root / "snapshots" / commit / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(commit)


@pytest.mark.parametrize("offline", ["1", "0"])
def test_a_filled_cache_needs_no_network(
    download: Download, repository: Path, tmp_path: Path, offline: str
) -> None:
    commit = "c" * 40
    fill_cache(tmp_path / "hf", "models", "org/tiny", commit, repository)
    data = tmp_path / "data"
    tiny.write_jsonl(data / "train.jsonl", tiny.make_messages(3))
    fill_cache(tmp_path / "hf", "datasets", "org/chats", commit, data)
    download.env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": offline}
    found = download.model("hf://org/tiny")
    assert found["revision"] == commit
    assert "model.safetensors" in names(found["folder"])
    ((path, name),) = download.data("hf://org/chats/train.jsonl")["files"]
    assert Path(path).read_bytes() == (data / "train.jsonl").read_bytes()
    assert name == "hf://org/chats/train.jsonl"


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Return a data set with two splits in three files."""
    folder = tmp_path / "chats"
    for number, name in enumerate(("train-0", "train-1", "test-0")):
        rows = tiny.make_messages(5, number)
        tiny.write_jsonl(folder / f"data/{name}.jsonl", rows)
    (folder / "README.md").write_text("# Chats")
    return folder


FOUND = {
    "file": ("data/test-0.jsonl", ["test-0"]),
    "folder": ("data", ["test-0", "train-0", "train-1"]),
    "glob": ("data/tr*.jsonl", ["train-0", "train-1"]),
    "deep glob": ("**/*-[01].jsonl", ["test-0", "train-0", "train-1"]),
}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND.keys())
def test_files_of_a_data_set(hub: Hub, download: Download, chats: Path, case: Any) -> None:
    path, stems = case
    hub.dataset("org/chats").commit(chats)
    found = download.data(f"hf://org/chats/{path}")["files"]
    assert [name for _, name in found] == [f"hf://org/chats/data/{s}.jsonl" for s in stems]
    for (local, _), stem in zip(found, stems, strict=True):
        assert Path(local).read_bytes() == (chats / f"data/{stem}.jsonl").read_bytes()
        assert Path(local).name == f"{stem}.jsonl"


def test_a_split_has_the_files_that_datasets_determines(
    hub: Hub, download: Download, chats: Path
) -> None:
    hub.dataset("org/chats").commit(chats)
    found = download.data("hf://org/chats")["files"]
    assert [Path(path).name for path, _ in found] == ["train-0.jsonl", "train-1.jsonl"]
    found = download.data("hf://org/chats", split="test")["files"]
    assert [Path(path).name for path, _ in found] == ["test-0.jsonl"]
    found = download.data("hf://org/chats", split="dev")
    assert found["code"] == 66
    assert "no split 'dev'; it has test, train; name one of them" in found["message"]
    assert not any(name.startswith(".scratch") for name in names(str(download.claim)))


def test_a_split_that_the_card_of_the_data_set_defines(
    hub: Hub, download: Download, chats: Path
) -> None:
    card = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/test-0.jsonl"}],
            }
        ]
    }
    (chats / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n# Chats")
    hub.dataset("org/chats").commit(chats)
    found = download.data("hf://org/chats", split="train")["files"]
    assert [Path(path).name for path, _ in found] == ["test-0.jsonl"]


DATA_REFUSED = {
    "absent": ("hf://org/absent", 77, "no such repository"),
    "file": ("hf://org/chats/absent.jsonl", 66, "no such file"),
    "glob": ("hf://org/chats/*.csv", 66, "no such file; check the pattern"),
    "gated": ("hf://org/gated", 77, "gated"),
    "pictures": ("hf://org/pictures", 64, "not a supported file of examples"),
}


@pytest.mark.parametrize("case", DATA_REFUSED.values(), ids=DATA_REFUSED.keys())
def test_refused_data_is_reported_with_a_remedy(
    hub: Hub, download: Download, chats: Path, tmp_path: Path, case: Any
) -> None:
    source, code, message = case
    hub.dataset("org/chats").commit(chats)
    hub.dataset("org/gated").commit(chats)
    hub.dataset("org/gated").gated = True
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"x")
    hub.dataset("org/pictures").commit(tmp_path / "pictures")
    found = download.data(source)
    assert found["code"] == code, found
    assert message in found["message"]
    assert found["message"].startswith(source)
