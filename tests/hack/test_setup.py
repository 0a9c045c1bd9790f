"""Tests that `make setup` reports what a machine lacks before it downloads anything."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_local.cache import TREE
from tests.namespace import NO_NAMESPACES, run_where, small_disk

SCRIPT = TREE / "hack" / "setup.py"


def older_pythons() -> list[str]:
    """Return the interpreters of this machine that are too old for the project."""
    names = [f"python3.{minor}" for minor in range(6, 11)]
    roots = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    roots += Path.home().glob(".pyenv/versions/*/bin")
    found = {str(root / name) for root in roots for name in names if (root / name).exists()}
    # Python 3.6 does not have postponed annotations.
    probe = "import sys; sys.exit(sys.version_info < (3, 7))"
    return sorted(
        p for p in found if subprocess.run([p, "-c", probe], capture_output=True).returncode == 0
    )


def setup(*arguments: str, before: str = "true", **env: str) -> str:
    """Run setup in a new namespace after a shell command; it must fail. Return its stderr."""
    done = run_where(before, sys.executable, str(SCRIPT), *arguments, **env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_an_older_python_can_parse_the_script():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 7))
    postponed = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert postponed[0] == "__future__", "annotations of today fail when an older Python reads them"


@pytest.mark.parametrize("python", older_pythons() or [pytest.param("", marks=pytest.mark.skip)])
def test_an_older_python_reports_that_it_is_too_old(python):
    done = subprocess.run([python, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: Python 3.11 or newer is needed, this is 3.")


def test_too_little_disk_space_is_reported_with_every_need_before_any_download(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    small = f"{small_disk(tmp_path)} && mkdir {cache}"
    folders = dict.fromkeys(("FINETUNE_CACHE", "XDG_CACHE_HOME", "GOCACHE"), str(cache))
    errors = setup("--demo", before=small, **folders)
    assert "0.1 GB of disk are free" in errors
    for need in ("Python packages 6.0 GB", "Go build 5.0 GB", "demo's model 1.0 GB"):
        assert f"{need} in {cache}" in errors


def test_setup_alone_needs_no_disk_space_for_the_demo(tmp_path):
    errors = setup(before=small_disk(tmp_path), FINETUNE_CACHE=str(tmp_path))
    assert "Python packages" in errors
    assert "; demo" not in errors


def test_refused_namespaces_are_reported_with_the_remedy():
    errors = setup(before=NO_NAMESPACES)
    assert "the kernel refuses user namespaces" in errors
    assert "sysctl -w user.max_user_namespaces" in errors


def test_a_cache_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").touch()
    assert "set FINETUNE_CACHE" in setup(FINETUNE_CACHE=str(tmp_path / "file" / "cache"))


def test_a_python_without_venv_is_reported(tmp_path):
    # Debian ships the standard library without ensurepip.
    (tmp_path / "ensurepip.py").write_text("raise ImportError\n")
    errors = setup(PYTHONPATH=str(tmp_path))
    assert "venv module is missing" in errors


def test_the_script_finds_unshare_only_on_the_path(tmp_path):
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "unshare (package util-linux) is not on the PATH" in done.stderr
    assert shutil.which("unshare")


@pytest.mark.parametrize(("target", "asked"), [("setup", False), ("demo", True), ("test", False)])
def test_only_the_demo_needs_its_disk_space(target, asked):
    done = subprocess.run(["make", "-n", target], cwd=TREE, capture_output=True, text=True)
    assert "hack/setup.py" in done.stdout
    assert ("hack/setup.py --demo" in done.stdout) == asked
