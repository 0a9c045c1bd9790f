"""The supervisor starts and ends a pod without importing torch or another large library.

An import contract in pyproject.toml forbids such imports in the source. This test covers what runs:
lazy imports and the imports of libraries.
"""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from finetune_api.run import Result
from finetune_api.storage import RunFile
from finetune_local.cache import TREE
from finetune_trainer.run_dir.records import ExportCard
from tests.trainer.gang import make_job

CONTRACT = "the supervisor never imports torch"
MAIN = """
import runpy, sys
sys.argv = ["finetune_trainer"]
try:
    runpy.run_module("finetune_trainer", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code, *sys.modules)
"""


def forbidden() -> set[str]:
    """Return the libraries that the import contract forbids."""
    contracts = tomllib.loads((TREE / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = [c for c in contracts["contracts"] if c["name"] == CONTRACT]
    return set(found["forbidden_modules"])


def supervise(tmp_path: Path, **config: Any) -> tuple[int, set[str], Result]:
    """Run the supervisor. Return its exit code, the modules that it imported and its result."""
    termination = tmp_path / "result.json"
    environment = {
        "FINETUNE_RUN": json.dumps(make_job(tmp_path).config | config),
        "FINETUNE_POD_IP": "127.255.98.7",
        "FINETUNE_TERMINATION_LOG": str(termination),
        "PET_NNODES": "1",
        "PET_NODE_RANK": "0",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.255.98.7",
        "PET_MASTER_PORT": "29500",
    }
    done = subprocess.run(
        [sys.executable, "-c", MAIN],
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    code, *modules = done.stdout.split()
    return int(code), set(modules), Result.model_validate_json(termination.read_text())


@pytest.fixture
def finished_run(tmp_path: Path) -> dict[str, Any]:
    """A worker's configuration whose storage holds the complete model."""
    storage = tmp_path / "runs/a"
    (storage / "final").mkdir(parents=True)
    run = RunFile(
        job_uid="uid-1", job_name="job", job_namespace="default", model_revision="", run_digest="d"
    )
    (storage / "run.json").write_text(run.to_json())
    export = ExportCard(job_uid="uid-1", run_digest="d", step=1, size_bytes=1)
    (storage / "final/export.json").write_text(export.to_json())
    return {"role": "worker", "attempt": 1, "runDigest": "d", "mounts": {"w": str(tmp_path)}}


def test_a_worker_that_claims_its_storage_imports_no_torch(
    tmp_path: Path, finished_run: dict[str, Any]
) -> None:
    code, modules, result = supervise(tmp_path, **finished_run)
    assert (code, result.reason) == (0, "Completed")
    assert (tmp_path / "runs/a/fence.1").is_file()
    assert (tmp_path / "runs/a/attempts/1.json").is_file()
    assert "finetune_trainer.pod.supervisor" in modules
    assert modules & forbidden() == set()


@pytest.mark.slow
def test_a_pod_whose_child_fails_imports_no_torch(tmp_path: Path) -> None:
    code, modules, result = supervise(tmp_path, role="prepare", mounts={})
    assert (code, result.reason) == (64, "BadConfiguration")
    assert "'w' is not mounted in this pod" in result.message
    assert modules & forbidden() == set()
