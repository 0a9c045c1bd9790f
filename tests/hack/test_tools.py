"""Programs that tests start: each is built once, by `make tools`, and never within a test."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from finetune_local.cache import TREE, made_once
from tests.tools.program import ALL, program


def run_tests(cache: Path, *arguments: str) -> str:
    """Run tests with an empty cache of tools and return their output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(cache), "FINETUNE_CACHE": str(cache)}
    done = subprocess.run(
        command, cwd=TREE, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "reason"),
    [
        ("tests/chart/test_generated.py", "helm is not built; run `make tools`"),
        ("tests/local/test_volumes.py", "the control plane is not built; run `make setup`"),
    ],
)
def test_a_test_without_its_program_is_skipped_with_the_command_to_run(tmp_path, test, reason):
    output = run_tests(tmp_path, test)
    assert reason in output
    assert "failed" not in output
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("tool", ALL, ids=lambda tool: tool.name)
def test_no_tool_is_built_within_a_test(tmp_path, monkeypatch, tool):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=f"{tool.name} is not built; run `make tools`"):
        program(tool)


def test_a_build_that_fails_leaves_nothing_that_looks_built(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))

    def fail(partial: Path) -> None:
        partial.mkdir()
        (partial / "half").touch()
        raise ValueError("no network")

    with pytest.raises(ValueError, match="no network"):
        made_once(tmp_path / "tool", fail)
    assert not (tmp_path / "tool").exists()
    made = made_once(tmp_path / "tool", lambda partial: partial.mkdir())
    assert list(made.iterdir()) == []


def test_callers_at_once_build_only_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    builds = []
    start = threading.Barrier(4)

    def build(partial: Path) -> None:
        builds.append(partial)
        partial.write_text("built")

    def call() -> None:
        start.wait()
        assert made_once(tmp_path / "tool", build).read_text() == "built"

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(builds) == 1
