"""What the chart renders, without a cluster."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml

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
def test_the_rendering_is_the_one_that_was_read(helm, file):
    assert render(helm, file) == (GOLDEN / file).read_text(), "run `make golden`"


def test_every_rendering_that_was_read_is_still_made():
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(FILES)


# Each value does something


def leaves(defaults: dict[str, Any], changed: Any, *above: str) -> Iterator[tuple[str, ...]]:
    for key, value in defaults.items():
        if isinstance(value, dict) and value and key != "resources":
            yield from leaves(value, changed[key], *above, key)
        else:
            assert changed[key] != value, f"everything.yaml: {'.'.join((*above, key))}"
            yield (*above, key)


def with_value(values: dict[str, Any], path: tuple[str, ...], other: dict[str, Any]) -> dict:
    """A copy in which one value is that of the others."""
    values = copy.deepcopy(values)
    place = values
    for key in path[:-1]:
        place, other = place[key], other[key]
    place[path[-1]] = other[path[-1]]
    return values


@pytest.fixture(scope="module")
def rendered(helm, tmp_path_factory) -> Callable[[dict[str, Any]], str]:
    """What is rendered from all of these values."""
    file = tmp_path_factory.mktemp("values") / "values.yaml"

    def render(values: dict[str, Any]) -> str:
        file.write_text(yaml.safe_dump(values))
        return helm.template("--values", file)

    return render


@pytest.fixture(scope="module")
def bases(rendered) -> dict[bool, str]:
    return {True: rendered(CHANGED), False: rendered(DEFAULTS)}


# Some do so only beside others: an account's name where none is created, labels of what is enabled.
BESIDE = {
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
def test_every_value_changes_what_is_rendered(rendered, bases, path):
    alone = ".".join(path) not in BESIDE
    base, other = (DEFAULTS, CHANGED) if alone else (CHANGED, DEFAULTS)
    assert rendered(with_value(base, path, other)) != bases[not alone]


def test_the_operator_reads_its_settings_from_what_is_rendered(helm, monkeypatch):
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
        health_port=8081,
        lease=LeaseSettings("finetune-system", "tuner", 20),
    )
    assert Settings.from_environment() == expected
    for field in fields(Settings):
        assert getattr(expected, field.name) != field.default, f"no value sets {field.name}"


def test_the_defaults_are_the_operator_s_own(helm, monkeypatch):
    template = find(helm.objects(), "Deployment")["spec"]["template"]
    for name, value in environment(template["spec"]["containers"][0]).items():
        monkeypatch.setenv(f"FINETUNE_{name}", value)
    assert Settings.from_environment() == Settings(
        trainer_image=f"finetune-trainer:{VERSION}",
        health_port=8081,
        lease=LeaseSettings("finetune-system", "finetune-operator"),
    )


def test_probes_ask_where_health_is_served(helm):
    template = find(helm.objects(), "Deployment")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment(container)["HEALTH_PORT"]
    served = (TREE / "operator" / "finetune_operator" / "health.py").read_text()
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
        assert f'"{path}"' in served


def test_metrics_are_scraped_where_they_are_served(helm):
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


def test_only_replicas_have_a_disruption_budget(helm):
    def kinds(replicas: int) -> set[str]:
        return {item["kind"] for item in helm.objects("--set", f"replicas={replicas}")}

    assert kinds(2) - kinds(1) == {"PodDisruptionBudget"}


def test_labels_of_the_user_never_replace_those_that_select(helm):
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
    names = {item["metadata"]["name"] for item in yaml.safe_load_all(text) if item}
    roles = {f"{name}-{suffix}" for suffix in ("leader-election", "view", "edit", "admin")}
    assert names == {name, f"{name}-metrics", *roles}


def test_a_name_of_digits_stays_a_name(helm):
    values = ("--set-json", 'namespaces=["007"]', "--set-json", 'networkPolicy.jobNamespaces=["1"]')
    found = {i["metadata"].get("namespace") for i in helm.objects(*values, namespace="42")}
    assert found >= {"007", "1", "42"}


def test_the_chart_can_be_a_part_of_another_one(helm):
    assert helm.objects("--set", "global.registry=x")


REFUSED = {
    "an unknown key": ("replica=2", "at '': additional properties 'replica' not allowed"),
    "an unknown key below": (
        "networkPolicy.egress=true",
        "at '/networkPolicy': additional properties 'egress' not allowed",
    ),
    "a selector of the spread, which the chart adds": (
        "topologySpreadConstraints[0].labelSelector.matchLabels.a=b",
        "at '/topologySpreadConstraints/0': additional properties 'labelSelector' not allowed",
    ),
    "another type": ("replicas=two", "at '/replicas': got string, want integer"),
    "no replica": ("replicas=0", "at '/replicas': minimum: got 0, want 1"),
    "too short a lease": (
        "leaseDurationSeconds=5",
        "at '/leaseDurationSeconds': minimum: got 5, want 10",
    ),
    "half a digest": ("image.digest=5f70bf18", "at '/image/digest': '5f70bf18' does not match"),
    "a policy of pulling": ("image.pullPolicy=Sometimes", "'/image/pullPolicy': value must be one"),
    "no name of a namespace": ("namespaces={Team_A}", "'/namespaces/0': 'Team_A' does not match"),
    "an account without a name": (
        "serviceAccount.create=false",
        "serviceAccount.create is false and serviceAccount.name is empty; name the service account",
    ),
    "an address with a fragment, which the chart adds": (
        "metrics.prometheusRule.runbookUrl=https://docs.example/alerts#one",
        "'/metrics/prometheusRule/runbookUrl': 'https://docs.example/alerts#one' does not match",
    ),
    "a setting behind the chart's back": (
        "extraEnv[0].name=FINETUNE_NAMESPACES",
        "extraEnv sets FINETUNE_NAMESPACES; variables that begin with FINETUNE_ are set by the",
    ),
}


@pytest.mark.parametrize(("value", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_value_is_refused_in_words(helm: Helm, value, words):
    with pytest.raises(HelmError) as refused:
        helm.template("--set", value)
    assert words in str(refused.value)


def test_an_older_kubernetes_is_refused_in_words(helm):
    with pytest.raises(HelmError, match=r"requires kubeVersion: >=1\.30.*incompatible"):
        helm.template("--kube-version", "1.29.0")
