"""s3:// on a real S3 server, and gs:// on the same server through Google's client."""

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trainer import s3, tiny
from tests.trainer.download import Download
from tests.trainer.s3 import S3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[S3]:
    with s3.serve(tmp_path_factory.mktemp("s3") / "s3") as found:
        found.put_folder("models", "team/tiny", tiny_model)
        found.put("models", "team/tiny/pytorch_model.bin", b"x" * 1000)
        for number, name in enumerate(("train-0", "train-1", "test-0")):
            lines = [json.dumps(row) for row in tiny.make_messages(5, number)]
            found.put("corpora", f"chats/{name}.jsonl", "\n".join(lines).encode())
        found.put("corpora", "chats/.hidden.jsonl", b"no")
        found.put("corpora", "chats/notes.txt", b"no")
        yield found


@pytest.fixture
def download(server: S3, tmp_path: Path) -> Download:
    claim = tmp_path / "claim"
    claim.mkdir()
    return Download(claim, dict(server.env))


def test_a_model_is_downloaded_once(server: S3, download: Download, tiny_model: Path) -> None:
    found = download.model("s3://models/team/tiny")
    folder = Path(found["folder"])
    assert folder == download.claim / "cache/models" / found["revision"]
    assert {p.name for p in folder.iterdir()} == {p.name for p in tiny_model.iterdir()}
    for file in tiny_model.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert found["advanced"] >= (tiny_model / "model.safetensors").stat().st_size
    assert "MB/s" in download.output[0]
    again = download.model("s3://models/team/tiny/")
    assert again["revision"] == found["revision"]
    assert "already downloaded" in download.output[1]


def test_objects_that_were_replaced_are_another_model(
    server: S3, download: Download, tiny_model: Path
) -> None:
    server.put_folder("models", "moving", tiny_model)
    first = download.model("s3://models/moving")
    server.put("models", "moving/chat_template.jinja", tiny.MARKED_TEMPLATE.encode())
    second = download.model("s3://models/moving")
    assert second["revision"] != first["revision"]
    template = Path(second["folder"]) / "chat_template.jinja"
    assert template.read_text() == tiny.MARKED_TEMPLATE
    server.put("models", "moving/checkpoints/log.txt", b"a log that grows beside it")
    assert download.model("s3://models/moving")["revision"] == second["revision"]


FOUND = {
    "file": ("chats/test-0.jsonl", ["test-0"]),
    "folder": ("chats", ["test-0", "train-0", "train-1"]),
    "glob": ("chats/tr*.jsonl", ["train-0", "train-1"]),
    "deep glob": ("**/*-[01].jsonl", ["test-0", "train-0", "train-1"]),
}


@pytest.mark.parametrize("case", FOUND.values(), ids=FOUND.keys())
def test_files_of_data(server: S3, download: Download, case: Any) -> None:
    key, stems = case
    found = download.data(f"s3://corpora/{key}")["files"]
    assert [name for _, name in found] == [f"s3://corpora/chats/{stem}.jsonl" for stem in stems]
    for (path, _), stem in zip(found, stems, strict=True):
        original = server.folder / f"corpora/chats/{stem}.jsonl"
        assert Path(path).read_bytes() == original.read_bytes()


REFUSED: dict[str, tuple[str, dict[str, str], int, str]] = {
    "bucket": ("s3://absent/x", {}, 66, "no such bucket"),
    "key": ("s3://models/absent", {}, 66, "no object below it; check bucket and key"),
    "key id": ("s3://models/team/tiny", {"AWS_ACCESS_KEY_ID": "x"}, 77, "not permitted ("),
    "wrong": (
        "s3://models/team/tiny",
        {"AWS_SECRET_ACCESS_KEY": "another-secret"},
        77,
        "Secret with the keys AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    ),
    "anonymous": ("s3://models/team/tiny", {"AWS_SKIP_SIGNATURE": "true"}, 77, "not permitted"),
    "no weights": ("s3://corpora/chats", {}, 66, "no weights model.safetensors; found"),
    "no server": (
        "s3://models/x",
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        78,
        "cannot be reac",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_model_is_reported_with_a_remedy(download: Download, case: Any) -> None:
    source, env, code, message = case
    download.env |= env
    found = download.model(source)
    assert found["code"] == code, found
    assert message in found["message"]
    assert found["message"].startswith(source)


def test_missing_credentials_are_reported(download: Download) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del download.env[name]
    # As on a machine outside a cloud, where no metadata service answers.
    download.env["AWS_METADATA_ENDPOINT"] = "http://127.0.0.1:9"
    found = download.model("s3://models/team/tiny")
    assert found["code"] == 77, found
    assert "no credentials were given, and the node has none" in found["message"]


@pytest.mark.parametrize(
    ("key", "message"), [("chats/absent.jsonl", "check the path"), ("chats/*.csv", "pattern")]
)
def test_missing_data_is_reported(download: Download, key: str, message: str) -> None:
    found = download.data(f"s3://corpora/{key}")
    assert found["code"] == 66
    assert message in found["message"]


def test_a_killed_download_is_resumed(server: S3, download: Download, tmp_path: Path) -> None:
    size = 100 << 20
    with (tmp_path / "big.jsonl").open("wb") as file:
        for number in range(size // (1 << 20)):
            file.write(bytes([65 + number % 26]) * (1 << 20))
    server.put("corpora", "big/train.jsonl", tmp_path / "big.jsonl")
    download.env["TEST_SLOWLY"] = "0.3"
    entry = {"source": "s3://corpora/big/train.jsonl"}
    process = download.start("data", download.config(dataset={"train": [entry]}))
    partial = wait_for_partial(download.claim)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = partial.stat().st_size
    assert 0 < kept < size
    del download.env["TEST_SLOWLY"]
    found = download.data(entry["source"])
    assert found["advanced"] == size - kept
    ((path, _),) = found["files"]
    assert Path(path).read_bytes() == (tmp_path / "big.jsonl").read_bytes()
    shutil.rmtree(download.claim / "cache")


def wait_for_partial(claim: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in claim.glob("cache/data/.downloading-*/train.jsonl.part"):
            if path.stat().st_size:
                return path
        time.sleep(0.02)
    raise AssertionError("nothing was downloaded")


def test_an_object_that_is_replaced_while_it_is_read_is_detected(server: S3) -> None:
    """Replace it in this process, between listing and reading."""
    from finetune_api.uri import ObjectPath
    from finetune_trainer.common.errors import TrainerError
    from finetune_trainer.sources.objects import ObjectFolder

    server.put("corpora", "changing/a.jsonl", b"first")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        folder = ObjectFolder(ObjectPath("s3", "corpora", "changing"), "changing")
        (file,) = folder.files()
        assert b"".join(folder.read(file, 2)) == b"rst"
        server.put("corpora", "changing/a.jsonl", b"other")
        with pytest.raises(TrainerError, match="was replaced while it was downloaded") as caught:
            list(folder.read(file, 0))
    assert (caught.value.code, caught.value.reason) == (78, "InputChanged")


def test_google_storage_uses_the_same_protocol(server: S3, download: Download) -> None:
    """Google's XML interface lists and reads as S3 does; the bucket is public."""
    server.make_public("corpora")
    download.env |= {"GOOGLE_BASE_URL": server.url, "GOOGLE_SKIP_SIGNATURE": "true"}
    found = download.data("gs://corpora/chats/tr*.jsonl")["files"]
    assert [name for _, name in found] == [
        f"gs://corpora/chats/train-{number}.jsonl" for number in (0, 1)
    ]
    original = server.folder / "corpora/chats/train-0.jsonl"
    assert Path(found[0][0]).read_bytes() == original.read_bytes()
    found = download.data("gs://absent/x.jsonl")
    assert found["code"] == 66
