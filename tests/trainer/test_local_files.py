"""From a source of the dataset to files on a claim."""

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from finetune_api.spec import DataSource
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.prepare import preparation
from finetune_trainer.run_dir.paths import Cache
from finetune_trainer.sources.download import Downloads
from finetune_trainer.sources.local_files import source_files
from tests.trainer.silent import SilentReporter

Configure = Callable[..., RunConfig]


@pytest.fixture
def tree(claim: Path) -> Path:
    """Create files of several types, hidden ones, and those that `datasets` writes beside data."""
    for name in (
        "set/b.jsonl",
        "set/a.jsonl.gz",
        "set/deep/c.jsonl",
        "set/.hidden.jsonl",
        "set/.git/d.jsonl",
        "set/README.md",
        "set/dataset_info.json",
        "set/dataset_infos.json",
        "set/state.json",
        "more/x.parquet",
        "more/y.jsonl",
        "odd/[1].jsonl",
        "empty/notes.txt",
        "top.jsonl",
    ):
        (claim / name).parent.mkdir(parents=True, exist_ok=True)
        (claim / name).write_text("{}\n")
    return claim


def find(configured: Configure, uri: str) -> list[str]:
    config = configured()
    downloads = Downloads(Cache.of(config), config.job_uid, SilentReporter())
    found = source_files(DataSource(source=uri), config.mounts, downloads)
    for file in found:
        assert file.path.is_file()
    return [file.name.removeprefix("pvc://w/") for file in found]


FOUND = {
    "a file": ("pvc://w/set/b.jsonl", ["set/b.jsonl"]),
    "a folder": ("pvc://w/set", ["set/a.jsonl.gz", "set/b.jsonl", "set/deep/c.jsonl"]),
    "a folder with a slash": ("pvc://w/set/deep/", ["set/deep/c.jsonl"]),
    "a glob": ("pvc://w/set/*.jsonl", ["set/b.jsonl"]),
    "a glob over folders": ("pvc://w/set/**/*.jsonl", ["set/b.jsonl", "set/deep/c.jsonl"]),
    "a set of letters": ("pvc://w/set/[ab].jsonl*", ["set/a.jsonl.gz", "set/b.jsonl"]),
    "a glob at the top": ("pvc://w/*.jsonl", ["top.jsonl"]),
    "a folder by a glob": ("pvc://w/mor*/*.parquet", ["more/x.parquet"]),
    "a name that looks like a glob": ("pvc://w/odd/[1].jsonl", ["odd/[1].jsonl"]),
}


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(("uri", "names"), FOUND.values(), ids=FOUND.keys())
def test_files_of_a_source(configured: Configure, uri: str, names: list[str]) -> None:
    assert find(configured, uri) == names


REFUSED = {
    "no file": (
        "pvc://w/none.jsonl",
        66,
        "pvc://w/none.jsonl: no such file on the claim; check the path, or copy the file there",
    ),
    "a glob that matches nothing": (
        "pvc://w/set/*.csv",
        66,
        "pvc://w/set/*.csv: the glob matches no file; check it, or copy the files there",
    ),
    "a folder without data": (
        "pvc://w/empty",
        66,
        "pvc://w/empty: no data file in this folder; allowed are .jsonl, .json and .csv, each "
        "optionally with .gz, .parquet and .arrow",
    ),
    "several types": (
        "pvc://w/more",
        65,
        "pvc://w/more: files of several types (.jsonl, .parquet); a source must have one type: "
        "narrow it with a glob, and add a source for each other type",
    ),
    "another type": (
        "pvc://w/set/README.md",
        65,
        "pvc://w/set/README.md: file type .md; allowed are .jsonl, .json and .csv, each optionally "
        "with .gz, .parquet and .arrow",
    ),
}


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(("uri", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_unusable_sources_are_refused(
    configured: Configure, uri: str, code: int, message: str
) -> None:
    with pytest.raises(TrainerError) as caught:
        find(configured, uri)
    assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize("uri", ["pvc://w/set", "pvc://w/set/*.jsonl", "pvc://w/set/away.jsonl"])
def test_links_that_leave_the_claim_are_refused(
    configured: Configure, tree: Path, uri: str
) -> None:
    secret = tree.parent / "secret.jsonl"
    secret.write_text("{}\n")
    (tree / "set/away.jsonl").symlink_to(secret)
    with pytest.raises(TrainerError, match=r"set/away.jsonl: a link leads out of the claim"):
        find(configured, uri)


def test_links_on_the_claim_are_followed_once(configured: Configure, tree: Path) -> None:
    (tree / "set/deep/link.jsonl").symlink_to("c.jsonl")
    (tree / "set/deep/up").symlink_to("..")
    assert find(configured, "pvc://w/set/deep") == [
        "set/deep/c.jsonl",
        "set/deep/link.jsonl",
        "set/deep/up/a.jsonl.gz",
        "set/deep/up/b.jsonl",
    ]


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("gone.jsonl")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL = {
    "a named pipe": (make_pipe, 64, "a named pipe (FIFO), not a file; copy the data into a file"),
    "a socket": (make_socket, 64, "a socket, not a file; copy the data into a file"),
    "a dangling link": (
        make_dangling_link,
        66,
        "a link to gone.jsonl, which does not exist; copy the file there, or remove the link",
    ),
    "a link to itself": (
        make_loop,
        66,
        "a link that leads back to itself; copy the file there, or remove the link",
    ),
}


@pytest.mark.parametrize("uri", ["pvc://w/set", "pvc://w/set/*.jsonl", "pvc://w/set/odd.jsonl"])
@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_file_is_refused_and_not_opened(
    configured: Configure, tree: Path, special: str, uri: str
) -> None:
    make, code, message = SPECIAL[special]
    make(tree / "set/odd.jsonl")
    with pytest.raises(TrainerError) as caught:
        find(configured, uri)
    assert (caught.value.code, caught.value.message) == (
        code,
        f"pvc://w/set/odd.jsonl: {message}",
    )


@pytest.mark.parametrize("name", ["model/config.json", "model/model.safetensors", "chat.jinja"])
def test_a_pipe_in_the_place_of_a_file_of_the_model_is_refused(
    configured: Configure, claim: Path, name: str
) -> None:
    (claim / name).unlink(missing_ok=True)
    os.mkfifo(claim / name)
    train = [{"source": "pvc://w/data/train.jsonl"}]
    template = {"chatTemplate": {"path": "pvc://w/chat.jinja"}} if name == "chat.jinja" else {}
    with pytest.raises(TrainerError) as caught:
        preparation.run(configured(dataset={"train": train, **template}), SilentReporter())
    assert caught.value.message.startswith(f"pvc://w/{name}: a named pipe (FIFO), not a file")


def test_links_of_a_model_folder_that_are_not_read_do_not_matter(
    configured: Configure, claim: Path
) -> None:
    (claim / "model/events.log").symlink_to("gone")
    os.mkfifo(claim / "model/pipe")
    preparation.run(configured(), SilentReporter())
