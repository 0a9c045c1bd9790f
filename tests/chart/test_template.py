"""Tests what the chart renders, without a cluster."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml

from finetune_api import names
from finetune_api.devices import DeviceType
from finetune_local.cache import TREE
from finetune_operator.selector import Selector
from finetune_operator.settings import LeaseSettings, Settings
from tests.chart.helm import CHART, VERSION, Helm, HelmError, environment, find
from tests.chart.renderings import EVERYTHING, FILES, GOLDEN, VALUES, render

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
CHANGED = yaml.safe_load(EVERYTHING.read_text())


@pytest.mark.parametrize("name", VALUES)
def test_lint_finds_nothing(helm, name):
    assert "1 chart(s) linted, 0 chart(s) failed" in helm("lint", "--strict", CHART, *VALUES[name])


@pytest.mark.parametrize("file", FILES)
def test_the_rendering_equals_the_golden_file(helm, file):
    assert render(helm, file) == (GOLDEN / file).read_text(), "run `make golden`"


def test_every_golden_file_is_still_rendered():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(FILES)


# Each value has an effect.


def leaves(defaults: dict[str, Any], changed: Any, *above: str) -> Iterator[tuple[str, ...]]:
    for key, value in defaults.items():
        if isinstance(value, dict) and value and key not in ("resources", "deviceTypes"):
            yield from leaves(value, changed[key], *above, key)
        else:
            assert changed[key] != value, f"everything.yaml: {'.'.join((*above, key))}"
            yield (*above, key)


def with_value(values: dict[str, Any], path: tuple[str, ...], other: dict[str, Any]) -> dict:
    """Return a copy in which one value comes from the other values."""
    values = copy.deepcopy(values)
    place = values
    for key in path[:-1]:
        place, other = place[key], other[key]
    place[path[-1]] = other[path[-1]]
    return values


@pytest.fixture(scope="module")
def rendered(helm, tmp_path_factory) -> Callable[[dict[str, Any]], str]:
    """A function that renders the chart with complete values."""
    file = tmp_path_factory.mktemp("values") / "values.yaml"

    def render(values: dict[str, Any]) -> str:
        file.write_text(yaml.safe_dump(values))
        return helm.template("--values", file)

    return render


@pytest.fixture(scope="module")
def bases(rendered) -> dict[bool, str]:
    return {True: rendered(CHANGED), False: rendered(DEFAULTS)}


# Values that have an effect only with others: the name of an account that is not created, labels of
# objects that are enabled.
DEPENDENT = {
    "serviceAccount.create",
    "networkPolicy.apiServerPorts",
    "metrics.serviceMonitor.labels",
    "metrics.serviceMonitor.interval",
    "metrics.prometheusRule.labels",
    "metrics.prometheusRule.runbookUrl",
    "metrics.dashboard.labels.grafana_dashboard",
    "metrics.dashboard.annotations",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", list(leaves(DEFAULTS, CHANGED)), ids=".".join)
def test_every_value_changes_the_rendering(rendered, bases, path):
    alone = ".".join(path) not in DEPENDENT
    base, other = (DEFAULTS, CHANGED) if alone else (CHANGED, DEFAULTS)
    assert rendered(with_value(base, path, other)) != bases[not alone]


def device_types(changed: dict[str, Any]) -> dict[str, DeviceType]:
    """Return the catalogue of the chart with changed entries, of which null removes one."""
    merged = DEFAULTS["deviceTypes"] | changed
    return {name: DeviceType.model_validate(entry) for name, entry in merged.items() if entry}


def test_the_operator_reads_its_settings_from_the_deployment(helm, monkeypatch):
    (container,) = find(helm.objects(*VALUES["everything"]), "Deployment")["spec"]["template"][
        "spec"
    ]["containers"]
    for name, value in environment(container).items():
        monkeypatch.setenv(f"FINETUNE_{name}", value)
    expected = Settings(
        trainer_image=f"registry.example/trainer@{CHANGED['trainer']['image']['digest']}",
        namespaces=("team-a", "team-b"),
        selector=Selector.parse("team in (a, b)"),
        report_interval=2.5,
        restart_backoff=30,
        progress_write_interval=7,
        strict_certificates=False,
        ended_metrics=600,
        health_port=8081,
        lease=LeaseSettings("finetune-system", "tuner", 20),
        device_types=device_types(CHANGED["deviceTypes"]),
    )
    assert "L4-24GB" in DEFAULTS["deviceTypes"]
    assert "L4-24GB" not in expected.device_types
    assert Settings.from_environment() == expected
    for field in fields(Settings):
        assert getattr(expected, field.name) != field.default, f"no value sets {field.name}"


def test_the_defaults_of_the_chart_are_those_of_the_operator(helm, monkeypatch):
    template = find(helm.objects(), "Deployment")["spec"]["template"]
    for name, value in environment(template["spec"]["containers"][0]).items():
        monkeypatch.setenv(f"FINETUNE_{name}", value)
    assert Settings.from_environment() == Settings(
        trainer_image=f"finetune-trainer:{VERSION}",
        health_port=8081,
        lease=LeaseSettings("finetune-system", "finetune-operator"),
        device_types=device_types({}),
    )


def test_probes_use_the_port_and_the_paths_of_health(helm):
    template = find(helm.objects(), "Deployment")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment(container)["HEALTH_PORT"]
    served = (TREE / "operator" / "finetune_operator" / "health.py").read_text()
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert f'"{path}"' in served


def test_metrics_are_scraped_from_the_port_and_the_path_of_health(helm):
    objects = helm.objects(
        "--set", "metrics.serviceMonitor.enabled=true,networkPolicy.enabled=true"
    )
    template = find(objects, "Deployment")["spec"]["template"]
    (port,) = template["spec"]["containers"][0]["ports"]
    service, monitor = find(objects, "Service"), find(objects, "ServiceMonitor")
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (way,) = service["spec"]["ports"]
    assert (way["targetPort"], way["port"]) == (port["name"], port["containerPort"])
    labels, space = service["metadata"]["labels"], service["metadata"]["namespace"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [space]}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["honorLabels"]) == (way["name"], True)
    served = (TREE / "operator" / "finetune_operator" / "health.py").read_text()
    assert f'"{endpoint["path"]}"' in served
    assert find(objects, "NetworkPolicy")["spec"]["ingress"] == [
        {"ports": [{"port": port["name"]}]}
    ]


def test_network_policies_allow_the_port_of_reports(helm):
    values = ("networkPolicy.enabled=true", "networkPolicy.jobNamespaces={team-a}")
    objects = helm.objects("--set", ",".join(values))
    jobs, operator = (item["spec"] for item in objects if item["kind"] == "NetworkPolicy")
    if "egress" in jobs:
        jobs, operator = operator, jobs
    report = {"port": names.REPORT_PORT}
    assert [report] in [rule.get("ports") for rule in jobs["ingress"]]
    assert [report] in [rule["ports"] for rule in operator["egress"]]


def test_a_disruption_budget_exists_only_with_several_replicas(helm):
    def kinds(replicas: int) -> set[str]:
        return {item["kind"] for item in helm.objects("--set", f"replicas={replicas}")}

    assert kinds(2) - kinds(1) == {"PodDisruptionBudget"}


def test_labels_of_the_user_never_replace_selector_labels(helm):
    more = ("commonLabels", "podLabels")
    sets = [f"--set={v}.app\\.kubernetes\\.io/{k}=x" for v in more for k in ("name", "instance")]
    for item in helm.objects(*sets, "--set", "replicas=2"):
        assert "x" not in item["metadata"]["labels"].values()
    spec = find(helm.objects(*sets), "Deployment")["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("release", "name"),
    {"finetune-operator": "finetune-operator", "red": "red-finetune-operator"}.items(),
)
def test_everything_is_named_after_the_release(helm, release, name):
    text = helm("template", release, CHART, "--set", "crds.enabled=false", "--set", "replicas=2")
    found = {item["metadata"]["name"] for item in yaml.safe_load_all(text) if item}
    roles = {f"{name}-{suffix}" for suffix in ("leader-election", "view", "edit", "admin")}
    assert found == {name, f"{name}-metrics", *roles}


def test_a_name_of_digits_stays_a_name(helm):
    values = ("--set-json", 'namespaces=["007"]', "--set-json", 'networkPolicy.jobNamespaces=["1"]')
    found = {i["metadata"].get("namespace") for i in helm.objects(*values, namespace="42")}
    assert found >= {"007", "1", "42"}


def test_the_chart_can_be_a_dependency_of_another_chart(helm):
    assert helm.objects("--set", "global.registry=x")


REFUSED = {
    "an unknown key": ("replica=2", "at '': additional properties 'replica' not allowed"),
    "an unknown key below": (
        "networkPolicy.egress=true",
        "at '/networkPolicy': additional properties 'egress' not allowed",
    ),
    "a label selector, which the chart adds": (
        "topologySpreadConstraints[0].labelSelector.matchLabels.a=b",
        "at '/topologySpreadConstraints/0': additional properties 'labelSelector' not allowed",
    ),
    "another type": ("replicas=two", "at '/replicas': got string, want integer"),
    "no replica": ("replicas=0", "at '/replicas': minimum: got 0, want 1"),
    "too short a lease": (
        "leaseDurationSeconds=5",
        "at '/leaseDurationSeconds': minimum: got 5, want 10",
    ),
    "an incomplete digest": (
        "image.digest=5f70bf18",
        "at '/image/digest': '5f70bf18' does not match",
    ),
    "an unknown pull policy": (
        "image.pullPolicy=Sometimes",
        "'/image/pullPolicy': value must be one",
    ),
    "an invalid name of a namespace": (
        "namespaces={Team_A}",
        "'/namespaces/0': 'Team_A' does not match",
    ),
    "an account without a name": (
        "serviceAccount.create=false",
        "serviceAccount.create is false and serviceAccount.name is empty; set serviceAccount.name",
    ),
    "an address with a fragment, which the chart adds": (
        "metrics.prometheusRule.runbookUrl=https://docs.example/alerts#one",
        "'/metrics/prometheusRule/runbookUrl': 'https://docs.example/alerts#one' does not match",
    ),
    "a setting of the operator": (
        "extraEnv[0].name=FINETUNE_NAMESPACES",
        "extraEnv sets FINETUNE_NAMESPACES; the chart sets variables that begin with FINETUNE_",
    ),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_invalid_value_is_refused_with_a_message(helm: Helm, value, message):
    with pytest.raises(HelmError) as refused:
        helm.template("--set", value)
    assert message in str(refused.value)


def test_an_older_kubernetes_is_refused_with_a_message(helm):
    with pytest.raises(HelmError, match=r"requires kubeVersion: >=1\.30.*incompatible"):
        helm.template("--kube-version", "1.29.0")
