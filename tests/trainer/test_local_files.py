"""From a source of the dataset to files on a claim."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.run import RunConfig
from finetune_api.spec import DataSource
from finetune_trainer.common.errors import TrainerError
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
