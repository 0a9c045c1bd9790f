"""Cluster names are validated, because `down` deletes the folder of that name."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_local.__main__ import main
from finetune_local.cluster import Cluster, ClusterError
from finetune_local.layout import Settings

PRECIOUS = "precious"


@pytest.fixture
def state(tmp_path: Path, monkeypatch) -> Path:
    """Return a state folder for clusters, with a file beside them that must not be deleted."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / PRECIOUS).write_text("keep me")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def finetune_local(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command line and returns the exit code and stderr."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["finetune-local", *arguments])
        code = main()
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "My_Cluster", "a\n", "-a", "a-", "x" * 32])
@pytest.mark.parametrize("command", ["down", "up", "status", "kubeconfig"])
def test_an_invalid_name_is_refused_before_anything_changes(state, finetune_local, command, name):
    code, error = finetune_local(command, f"--name={name}")
    assert code == 1
    assert "is not a valid cluster name" in error
    assert [p.name for p in state.iterdir()] == [PRECIOUS]


def test_a_path_is_not_a_valid_name(state, finetune_local, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    assert finetune_local("down", "--name", str(victim))[0] == 1
    assert victim.exists()


def test_a_folder_without_cluster_json_is_not_deleted(state):
    folder = state / "finetune-local" / "photos"
    folder.mkdir(parents=True)
    (folder / "1.jpg").touch()
    with pytest.raises(ClusterError, match="not the folder of a cluster"):
        Cluster("photos").down()
    assert (folder / "1.jpg").exists()


def test_a_path_too_long_for_sockets_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ("d" * 100)))
    with pytest.raises(ClusterError, match="too long for a socket"):
        Cluster.up("a")


@pytest.mark.parametrize("name", ["a", "default", "0", "test-api-12345", "x" * 31])
def test_valid_names(name):
    assert Cluster(name).name == name


def test_unknown_fields_in_cluster_json_are_ignored(tmp_path):
    mine = Settings("a", 20000, "127.16.0.0/16", 1, 1)
    mine.save(tmp_path / "cluster.json")
    text = (tmp_path / "cluster.json").read_text()
    (tmp_path / "cluster.json").write_text(text.replace("{", '{"colour": "red", ', 1))
    assert Settings.load(tmp_path / "cluster.json") == mine
