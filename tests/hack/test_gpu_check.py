"""The check for GPUs: a part that fails costs the others nothing, and it runs on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.gpu import pack, table
from benchmarks.gpu.check import Part, run

from finetune_local.cache import TREE


def part(name: str, code: str, limit: float = 30.0, result: Path | None = None, ranks: int = 0):
    return Part(name, [[sys.executable, "-c", code]], limit, result, ranks)


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(tmp_path: Path):
    figures = tmp_path / "figures.json"
    writing = (
        f"open({str(figures)!r}, 'w').write('{{\"tokensPerSecond\": 5.0}}')\n"
        "import os, sys, time\n"
        "time.sleep(600 if os.environ['RANK'] == '1' else 0)\n"
    )
    results = run(
        [
            part("failing", "print('first'); raise SystemExit('no such kernel')"),
            part("train hanging", writing, limit=2.0, result=figures, ranks=2),
            part("one rank dies", "import os, time; os.environ['RANK'] == '1' or time.sleep(600)"
                 "; raise SystemExit(3)", ranks=2),
            part("good", "print('fine')"),
        ],
        tmp_path,
        limit=60.0,
    )  # fmt: skip
    assert {name: result["status"] for name, result in results.items()} == {
        "failing": "failed with exit code 1",
        "train hanging": "stopped: its time was over",
        "one rank dies": "failed with exit code 3",
        "good": "ok",
    }
    assert results["failing"]["lastLine"] == "no such kernel"
    assert results["train hanging"]["tokensPerSecond"] == 5.0  # what it had measured so far
    assert json.loads((tmp_path / "gpu-check.json").read_text()) == results
    assert "no such kernel" in (tmp_path / "gpu-check.log").read_text()
    row = table.text(results).splitlines()[-1]
    assert row.startswith("| train hanging | 5 | ")
    assert row.endswith("| stopped: its time was over |")


def test_parts_without_time_left_are_named(tmp_path: Path):
    results = run([part("late", "print()")], tmp_path, limit=4.0)
    assert results == {"late": {"status": "not run: no time is left"}}
    assert table.text(results) == "* late: not run: no time is left; 0 s"


def test_every_source_of_the_archive_exists():
    assert [name for name in pack._SOURCES if not (TREE / name).exists()] == []


def test_it_says_how_to_run_it_without_a_gpu(tmp_path: Path):
    check = [sys.executable, "benchmarks/gpu/check.py", "--out", str(tmp_path)]
    done = subprocess.run(check, cwd=TREE, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert "torch finds no CUDA device here; --dry-run checks the check itself" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_dry_run_passes_from_the_packed_sources(tmp_path: Path, monkeypatch):
    """Run what the archive holds, apart from the wheels, with a tiny model."""
    monkeypatch.setattr(pack, "OUT", tmp_path / "gpu-check")
    pack._copy_sources()
    check = tmp_path / "gpu-check/tree/benchmarks/gpu/check.py"
    command = [sys.executable, str(check), "--dry-run", "--out", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout + (tmp_path / "results/gpu-check.log").read_text()
    results = json.loads((tmp_path / "results/gpu-check.json").read_text())
    assert {name: result["status"] for name, result in results.items()} == dict.fromkeys(
        [
            "machine",
            "tests",
            "self-check tiny",
            "combinations",
            "train tiny stage 2",
            "train tiny stage 3",
            "peer tiny stage 2",
        ],
        "ok",
    )
    assert all(problem is None for problem in results["self-check tiny"]["kernels"].values())
    trainings = [result for name, result in results.items() if name.startswith(("train", "peer"))]
    for result in trainings:
        assert result["tokensPerSecond"] > 0
        assert result["stallSeconds"] > 0
        assert 5.5 < result["lastLoss"] < 7.0  # ln(512) is 6.24
    assert len(results["combinations"]["combinations"]) == 7
    assert all(result["plannedBytes"] > 2.5e9 for result in trainings[:2])
    assert trainings[0]["lastLoss"] == pytest.approx(trainings[1]["lastLoss"], abs=1e-3)
