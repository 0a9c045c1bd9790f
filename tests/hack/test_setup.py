"""Tests that `make setup` reports what a machine lacks before it downloads anything."""

import ast
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.cache import TREE
from finetune_local.processes import children_of, command_of, is_alive
from tests.installed import wait_for
from tests.namespace import NO_NAMESPACES, run_where, small_disk

SCRIPT = TREE / "hack" / "setup.py"


def older_pythons() -> list[str]:
    """Return the interpreters of this machine that are too old for the project."""
    names = ["python2.7", *(f"python3.{minor}" for minor in range(4, 11))]
    roots = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    roots += Path.home().glob(".pyenv/versions/*/bin")
    found = {str(root / name) for root in roots for name in names if (root / name).exists()}
    return sorted(
        p for p in found if subprocess.run([p, "-c", ""], capture_output=True).returncode == 0
    )


def setup(*arguments: str, before: str = "true", **env: str) -> str:
    """Run setup in a new namespace after a shell command; it must fail. Return its stderr."""
    done = run_where(before, sys.executable, str(SCRIPT), *arguments, **env)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("name", ["setup.py", "python_version.py"])
def test_every_python_can_parse_the_first_files(name):
    """Syntax that is newer than Python 2.7 would hide the message about the version."""
    tree = ast.parse((TREE / "hack" / name).read_text())
    newer = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.FunctionDef, ast.With, ast.Starred)
    assert not [node for node in ast.walk(tree) if isinstance(node, newer)]
    assert all(
        node.module != "__future__" for node in tree.body if isinstance(node, ast.ImportFrom)
    )


@pytest.mark.parametrize("target", ["setup", "images", "docs"])
@pytest.mark.parametrize("python", older_pythons() or [pytest.param("", marks=pytest.mark.skip)])
def test_an_older_python_reports_that_it_is_too_old(python, target):
    command = ["make", target, f"PYTHON={python}"]
    # Within `make check`, these variables would change the name by which make reports an error.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=TREE, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"Python 3.11 or newer is needed; {python} is ")
    assert first.endswith(". Choose another one: make PYTHON=python3.12 ...")
    assert [line[:9] for line in rest] == ["make: ***"]


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
    assert "In a container, start it with: docker run --security-opt seccomp=unconfined" in errors


def test_a_cache_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").touch()
    assert "set FINETUNE_CACHE" in setup(FINETUNE_CACHE=str(tmp_path / "file" / "cache"))


def test_a_python_without_venv_is_reported(tmp_path):
    # Debian ships the standard library without ensurepip.
    (tmp_path / "ensurepip.py").write_text("raise ImportError\n")
    errors = setup(PYTHONPATH=str(tmp_path))
    assert "venv module is missing" in errors


@pytest.fixture
def silent_index() -> Iterator[str]:
    """A package index that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["venv", "pip"])
def test_an_interrupted_setup_says_so_and_leaves_no_process_or_temporary_file(
    tmp_path, silent_index, phase
):
    env = os.environ | {"FINETUNE_CACHE": str(tmp_path), "PIP_INDEX_URL": silent_index}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    shown = {"venv": ["-m", "venv"], "pip": ["-m", "pip", "install"]}[phase]

    def child() -> int | None:
        for pid in children_of(process.pid):
            command = command_of(pid)
            if command[1 : 1 + len(shown)] == shown:
                return pid
        return None

    running = wait_for(f"{phase} to run", child, 60)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, errors = process.communicate(timeout=20)
    assert errors == "setup: interrupted; run the target again to continue\n"
    assert process.returncode == 130
    assert "Traceback" not in output
    assert not is_alive(running)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


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
