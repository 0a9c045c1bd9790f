"""Tests what panels of the dashboard show, evaluated by the real promtool."""

import runpy
from pathlib import Path

import yaml

from finetune_local.cache import TREE
from tests.chart.test_alerts import promtool

PANELS = {panel.title: panel for panel in runpy.run_path(str(TREE / "hack/dashboard.py"))["JOBS"]}
RUNNING, SAVED = (f"finetune_job_{what}_timestamp_seconds" for what in ("running", "checkpoint"))


def draws(folder: Path, title: str, series: dict[str, float], minute: int, lines: dict) -> None:
    """Check the lines of a panel after some minutes; series are named `metric instance job`."""
    (expression,) = PANELS[title].series.values()
    inputs = []
    for key, value in series.items():
        metric, instance, job = key.split()
        labels = f'{{namespace="a", name="{job}", instance="{instance}"}}'
        inputs.append({"series": metric + labels, "values": f"{value}x{minute}"})
    samples = [
        {"labels": f'{{namespace="a", name="{job}"}}', "value": value}
        for job, value in lines.items()
    ]
    for variable in ("$namespace", "$name"):
        expression = expression.replace(variable, ".*")
    expected = {"expr": expression, "eval_time": f"{minute}m", "exp_samples": samples}
    case = {"interval": "1m", "input_series": inputs, "promql_expr_test": [expected]}
    (folder / "case.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    assert "SUCCESS" in promtool("test", "rules", folder / "case.yaml")


def test_the_age_of_the_newest_checkpoint_is_the_time_that_a_failure_would_lose(tmp_path: Path):
    series = {
        f"{RUNNING} 1 saved": 600,
        f"{SAVED} 1 saved": 1200,
        f"{RUNNING} 1 unsaved": 600,
        # Resumed from a checkpoint that is older than its gang.
        f"{RUNNING} 1 resumed": 1500,
        f"{SAVED} 1 resumed": 60,
        # Succeeded, failed or suspended.
        f"{SAVED} 1 ended": 60,
        # Exported by the previous and by the new leader.
        f"{RUNNING} 1 moved": 600,
        f"{SAVED} 1 moved": 900,
        f"{RUNNING} 2 moved": 600,
        f"{SAVED} 2 moved": 1700,
    }
    lines = {"saved": 600, "unsaved": 1200, "resumed": 300, "moved": 100}
    draws(tmp_path, "Age of the newest checkpoint", series, 30, lines)
