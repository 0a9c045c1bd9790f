"""Tests with the real promtool when each alert of the chart fires and when it does not."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from finetune_api.base import Object
from finetune_local.cache import TREE
from tests.chart.helm import Helm, find
from tests.tools.debian_tool import PROMTOOL
from tests.tools.program import program

CASES = Path(__file__).parent / "alerts" / "cases.yaml"
PAGE = (TREE / "docs" / "operate" / "monitoring.md").read_text()


def rules(helm: Helm, *values: str) -> Object:
    """Return the rules of the rendered PrometheusRule."""
    rendered = helm.objects("--set", ",".join(("metrics.prometheusRule.enabled=true", *values)))
    spec: Object = find(rendered, "PrometheusRule")["spec"]
    return spec


def alerts(spec: Object) -> dict[str, Object]:
    return {rule["alert"]: rule for group in spec["groups"] for rule in group["rules"]}


def promtool(*arguments: object) -> str:
    command = [str(program(PROMTOOL)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> Object:
    return rules(helm)


@pytest.fixture
def folder(rendered: Object, tmp_path: Path) -> Path:
    """A folder with the rules and the cases."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rendered, width=1000))
    shutil.copy(CASES, tmp_path)
    return tmp_path


def test_promtool_accepts_the_rules(folder: Path):
    assert "5 rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", folder / "rules.yaml"
    )


def test_each_alert_fires_in_its_cases_and_in_no_other(folder: Path):
    assert "SUCCESS" in promtool("test", "rules", folder / CASES.name)


# A change of each threshold and of each condition, which must fail at least one case.
CHANGES = [
    ("> 1800", "> 3600"),
    ("> 1800", "> 900"),
    ("> 3 *", "> 30 *"),
    ("> finetune_job_running_timestamp_seconds", "> 0"),
    (">= 3", ">= 2"),
    (">= 3", ">= 4"),
    ("> 0.2", "> 0.01"),
    ("> 0.2", "> 0.5"),
    ("> 3600", "> 36000"),
    ("> 3600", "> 36"),
    ("Succeeded|Failed", "Suspended"),
    (") == 0", ") == 1"),
    ("or absent", "and absent"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("written", "changed"), CHANGES)
def test_every_changed_condition_fails_a_case(folder: Path, written: str, changed: str):
    text = (folder / "rules.yaml").read_text()
    assert written in text
    (folder / "rules.yaml").write_text(text.replace(written, changed))
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", folder / CASES.name)


def test_each_alert_has_a_case_in_which_it_fires(rendered: Object):
    fired = {
        case["alertname"]
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == set(alerts(rendered))


def test_each_alert_has_a_section_on_the_page(rendered: Object):
    assert re.findall(r"^## (\w+)$", PAGE, re.M) == list(alerts(rendered))


def test_an_alert_links_to_its_section_if_a_runbook_url_is_set(helm: Helm, rendered: Object):
    for rule in alerts(rendered).values():
        assert "runbook_url" not in rule["annotations"]
    page = "https://docs.example/alerts"
    for name, rule in alerts(rules(helm, f"metrics.prometheusRule.runbookUrl={page}")).items():
        assert rule["annotations"]["runbook_url"] == f"{page}#{name.lower()}"


def test_the_alert_of_a_release_ignores_the_operators_of_other_releases(helm: Helm):
    values = "metrics.prometheusRule.enabled=true,fullnameOverride=tuner"
    objects = helm.objects("--set", values, namespace="team")
    assert find(objects, "Service")["metadata"]["name"] == "tuner-metrics"
    expression = alerts(find(objects, "PrometheusRule")["spec"])["FineTuneOperatorNotLeading"][
        "expr"
    ]
    assert expression.count('{namespace="team", service="tuner-metrics"}') == 2
    assert "RELEASE" not in str(objects)
