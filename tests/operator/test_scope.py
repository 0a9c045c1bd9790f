"""The jobs that an operator is responsible for: label selectors, namespaces, and its rights."""

import json

import pytest
import yaml

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from finetune_local.ports import free_port
from finetune_operator.selector import Selector
from finetune_operator.settings import Settings, SettingsError
from tests.installed import Operator, install, ready, wait_for
from tests.operator.faults import Seen
from tests.operator.kubelet import names
from tests.operator.test_live import CLAIM
from tests.operator.worlds import spec_of

LABELS = [{}, {"team": "a"}, {"team": "b"}, {"team": "a", "tier": "gold"}, {"example.com/x": ""}]
SELECTORS = [
    "",
    "team=a",
    "team == a",
    "team!=a",
    "team in (a, b)",
    "team notin (a,c),tier",
    "team",
    "!team",
    "! team, tier!=gold",
    "example.com/x=",
    "example.com/x in ()",
    "team in (a,b),tier notin (gold)",
]


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    for namespace in ("one", "two", "three", "default"):
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
        control_plane.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=CLAIM)
    return control_plane


@pytest.mark.cluster
@pytest.mark.slow
def test_selectors_select_what_the_api_server_selects(api):
    items = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"labels-{number}", "labels": labels},
        }
        for number, labels in enumerate(LABELS)
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    api.kubectl("apply", "--namespace", "three", "-f", "-", stdin=text)
    expected, found = {}, {}
    for selector in SELECTORS:
        answer = api.kubectl("get", "cm", "--namespace=three", "-l", selector, "-o", "name")
        expected[selector] = {n for n in range(len(LABELS)) if f"labels-{n}\n" in answer}
        parsed = Selector.parse(selector)
        found[selector] = {n for n, labels in enumerate(LABELS) if parsed.matches(labels)}
    assert found == expected


@pytest.mark.parametrize("text", ["team=a b", "team in a", "=a", "team>3", "-x=a", "a,,b", "a=b;c"])
def test_an_invalid_selector_is_refused_with_the_allowed_forms(monkeypatch, text):
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "trainer:1")
    monkeypatch.setenv("FINETUNE_JOB_SELECTOR", text)
    with pytest.raises(SettingsError, match=r"FINETUNE_JOB_SELECTOR is .* allowed: key=value"):
        Settings.from_environment()


LEASES = {
    "name without namespace": ({"LEASE_NAME": "a"}, "FINETUNE_LEASE_NAMESPACE is not set"),
    "too short": ({"LEASE_DURATION_SECONDS": "5"}, "is '5'; an integer from 10 to 600"),
    "not a flag": ({"STRICT_CERTIFICATES": "no"}, "is 'no'; true or false is allowed"),
    "not a port": ({"HEALTH_PORT": "80.5"}, "FINETUNE_HEALTH_PORT is '80.5'"),
}


@pytest.mark.parametrize(("variables", "message"), LEASES.values(), ids=LEASES.keys())
def test_invalid_settings_are_refused_with_the_allowed_values(monkeypatch, variables, message):
    monkeypatch.setenv("FINETUNE_TRAINER_IMAGE", "trainer:1")
    for name, value in variables.items():
        monkeypatch.setenv(f"FINETUNE_{name}", value)
    with pytest.raises(SettingsError, match=message):
        Settings.from_environment()


def apply(api: Cluster, name: str, namespace: str = "default", **labels: str) -> None:
    item = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec_of(name),
    }
    api.kubectl("create", "-f", "-", stdin=json.dumps(item))


def prepares(api: Cluster, namespace: str) -> set[str]:
    found = api.kubectl("get", "pods", "--namespace", namespace, "-o", "name").split()
    return {name.removeprefix("pod/") for name in found}


def job(api: Cluster, namespace: str, name: str) -> dict:
    return json.loads(api.kubectl("get", "ftj", name, "--namespace", namespace, "-o", "json"))


@pytest.fixture
def writer(api: Cluster) -> Cluster:
    """Return the cluster with an account that has rights only in the namespaces one and two."""
    items = list(yaml.safe_load_all((TREE / "operator" / "rbac" / "role.yaml").read_text()))
    role = next(item for item in items if item["kind"] == "ClusterRole")
    account = {"kind": "ServiceAccount", "name": "namespaced", "namespace": "finetune-system"}
    made = [{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _named("namespaced")}]
    rbac = "rbac.authorization.k8s.io"
    for namespace in ("one", "two"):
        metadata = _named("namespaced", namespace)
        made.append({**role, "kind": "Role", "metadata": metadata})
        made.append(
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "namespaced"},
                "subjects": [account],
            }
        )
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
    api.kubectl("apply", "-f", "-", stdin=text)
    return api


def _named(name: str, namespace: str = "finetune-system") -> dict:
    return {"name": name, "namespace": namespace}


@pytest.mark.cluster
@pytest.mark.slow
def test_an_operator_of_two_namespaces_needs_no_rights_in_others(writer, tmp_path):
    config = writer.user_kubeconfig("finetune-system", "namespaced")
    operator = Operator(writer, tmp_path / "operator.log", config, NAMESPACES="one, two")
    apply(writer, "before", "one")
    operator.start()
    try:
        for namespace in ("three", "two"):
            apply(writer, "after", namespace)
        wait_for("both are served", lambda: prepares(writer, "one") and prepares(writer, "two"), 30)
        assert prepares(writer, "three") == set()
        assert "status" not in job(writer, "three", "after")
        assert "orbidden" not in operator.log
        assert operator.stop() == 0
    finally:
        operator.kill()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("lost", ["one", "two"], ids=["the first", "another"])
def test_a_namespace_without_rights_does_not_affect_another_one(writer, tmp_path, lost):
    """The operator starts without the rights, and serves the namespace once it has them."""
    kept = {"one": "two", "two": "one"}[lost]
    config = writer.user_kubeconfig("finetune-system", "namespaced")
    port = free_port()
    operator = Operator(
        writer, tmp_path / "operator.log", config, NAMESPACES="one, two", HEALTH_PORT=str(port)
    )
    binding = ("rolebinding", "namespaced", "--namespace", lost)
    saved = json.loads(writer.kubectl("get", *binding, "-o", "json"))
    writer.kubectl("delete", *binding)
    try:
        operator.start()
        for namespace in (lost, kept):
            apply(writer, f"deprived-{lost}", namespace)
        pod = f"deprived-{lost}-prepare"
        wait_for("the other one is served", lambda: pod in prepares(writer, kept), 30)
        assert pod not in prepares(writer, lost)
        readiness = ready(port)
        assert f"watch on pods in {lost}" in readiness
        assert readiness.count("refused (403)") == 2
        for field in ("resourceVersion", "uid", "creationTimestamp"):
            del saved["metadata"][field]
        writer.kubectl("create", "-f", "-", stdin=json.dumps(saved))
        wait_for("it is served again", lambda: pod in prepares(writer, lost), 60)
        readiness = ready(port)
        assert readiness
        assert "refused" not in readiness
        assert operator.stop() == 0
    finally:
        operator.kill()
        writer.kubectl("apply", "-f", "-", stdin=json.dumps(saved))


def version(api: Cluster, name: str) -> str:
    found: str = job(api, "default", name)["metadata"]["resourceVersion"]
    return found


def _reads(seen: Seen, name: str) -> bool:
    return seen.path.endswith(f"/finetunejobs/{name}")


@pytest.mark.cluster
@pytest.mark.slow
def test_two_operators_share_a_cluster_and_a_job_can_move_from_one_to_the_other(
    api, proxy, tmp_path
):
    through = proxy.kubeconfig(api.user_kubeconfig("finetune-system", "finetune-operator"))
    red = Operator(api, tmp_path / "red.log", through, JOB_SELECTOR="lane in (red)")
    blue = Operator(api, tmp_path / "blue.log", JOB_SELECTOR="lane=blue")
    red.start()
    try:
        apply(api, "mine", lane="red")
        apply(api, "theirs", lane="blue")
        wait_for("mine", lambda: "mine-prepare" in names(api, "mine"), 30)
        assert names(api, "theirs") == set()
        # Its watch on jobs delivers nothing: only a live read shows that the job has moved.
        with proxy.fault(path="/finetunejobs", watch=True, mute=True) as silent:
            proxy.cut_streams()
            wait_for("a silent watch", lambda: silent.met, 30)
            api.kubectl("label", "--overwrite", "ftj", "mine", "lane=blue")
            moved = version(api, "mine")
            before = len(proxy.seen)
            api.kubectl("delete", "pod", "mine-prepare", "--grace-period=0", "--force")
            wait_for("a live read", lambda: any(_reads(s, "mine") for s in proxy.seen[before:]), 30)
        proxy.cut_streams()
        apply(api, "last", lane="red")
        wait_for("red works on", lambda: names(api, "last"), 30)
        # A status that was planned from the old version may have been sent, and was refused.
        assert version(api, "mine") == moved
        assert names(api, "mine") == set()
        blue.start()
        wait_for("blue takes over", lambda: names(api, "mine") and names(api, "theirs"), 30)
    finally:
        red.kill()
        if blue.running:
            blue.kill()
