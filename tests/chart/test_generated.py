"""Tests that the parts of the chart that repeat another source agree with it."""

import functools
import json
import operator
import re
import runpy
import tomllib
from collections.abc import Iterator

import pytest
import yaml

from finetune_api.names import PLURAL
from finetune_local.cache import TREE
from tests.chart.helm import CHART, VERSION, find
from tests.chart.renderings import EVERYTHING

WRITTEN = runpy.run_path(str(TREE / "hack" / "chart.py"))["parts"]()
DASHBOARD = runpy.run_path(str(TREE / "hack" / "dashboard.py"))
WRITTEN |= {TREE / DASHBOARD["PATH"]: DASHBOARD["text"]()}
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
CRD = yaml.safe_load((TREE / "crds" / "finetune.dev_finetunejobs.yaml").read_text())
ROLES = {
    item["kind"]: item
    for item in yaml.safe_load_all((TREE / "operator" / "rbac" / "role.yaml").read_text())
}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path):
    assert path.read_text() == WRITTEN[path], "run `make crds`"


@pytest.mark.parametrize("keep", [True, False])
def test_the_rendered_definition_equals_the_generated_one(helm, keep):
    found = find(helm.objects("--set", f"crds.keep={keep}".lower()), "CustomResourceDefinition")
    assert found["spec"] == CRD["spec"]
    assert found["metadata"]["name"] == CRD["metadata"]["name"] == f"{PLURAL}.finetune.dev"
    annotations = {"helm.sh/resource-policy": "keep"} if keep else None
    assert found["metadata"].get("annotations") == annotations


def test_the_rendered_dashboard_equals_the_generated_one(helm):
    values = ("metrics.dashboard.enabled=true", "metrics.dashboard.annotations.folder=Training")
    found = find(helm.objects("--set", ",".join(values)), "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"folder": "Training"}
    (text,) = found["data"].values()
    assert json.loads(text) == json.loads((TREE / DASHBOARD["PATH"]).read_text())


def test_the_cluster_role_has_the_rules_of_the_local_cluster(helm):
    objects = helm.objects("--set", "userRoles.enabled=false")
    for kind in ("ClusterRole", "Role"):
        assert find(objects, kind)["rules"] == ROLES[kind]["rules"]


def test_namespaced_roles_have_the_same_rules_and_the_lease_of_the_release(helm):
    objects = helm.objects("--values", EVERYTHING)
    assert not [item for item in objects if item["kind"].startswith("Cluster")]
    roles = {
        (role["metadata"]["name"], role["metadata"]["namespace"]): role["rules"]
        for role in objects
        if role["kind"] == "Role"
    }
    lease = roles.pop(("tuner-leader-election", "finetune-system"))
    assert lease[1]["resourceNames"] == ["tuner"]
    rules = ROLES["ClusterRole"]["rules"]
    assert roles == {("tuner", "team-a"): rules, ("tuner", "team-b"): rules}


def test_the_chart_has_the_version_of_the_project():
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def resolved(schema: dict) -> dict:
    """Return the schema that a reference inside of the schema refers to."""
    steps = schema.get("$ref", "").split("/")[1:]
    return functools.reduce(operator.getitem, steps, SCHEMA) if steps else schema


def paths(values: dict, schema: dict, prefix: str = "") -> Iterator[tuple[str, dict, bool]]:
    """Return the path and the schema of each property, and whether values.yaml has it."""
    for key, child in schema["properties"].items():
        child = resolved(child)
        yield f"{prefix}{key}", child, key in values
        if "properties" in child and values.get(key):
            yield from paths(values[key], child, f"{prefix}{key}.")


def test_the_schema_has_exactly_the_keys_of_the_values():
    unknown = {path for path, _, known in paths(VALUES, SCHEMA) if not known}
    assert unknown == {"global"}


def test_the_schema_refuses_unknown_keys_everywhere():
    for path, child, _ in [("", SCHEMA, True), *paths(VALUES, SCHEMA)]:
        if "properties" in child:
            assert child["additionalProperties"] is False, path


def test_the_readme_lists_every_example():
    named = re.findall(r"\]\(examples/(\S+?)\)", (CHART / "README.md").read_text())
    assert sorted(named) == sorted(path.name for path in (CHART / "examples").iterdir())
