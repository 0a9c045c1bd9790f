"""Applies the rendered chart to the real API server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api import names
from finetune_local.cluster import Cluster
from tests.chart.helm import Helm, find, shared
from tests.chart.renderings import VALUES
from tests.installed import wait_for
from tests.operator.older import Left, left_in

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MONITORING = Path(__file__).parent / "monitoring.yaml"
SERVED = ("api-resources", "--api-group=monitoring.coreos.com", "--cached=false")


@pytest.fixture(scope="module")
def cluster_with_namespaces(api: Cluster) -> Cluster:
    for name in ("finetune-system", "team-a", "team-b", "research"):
        item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        api.kubectl("apply", "-f", "-", stdin=json.dumps(item))
    api.kubectl("apply", "-f", str(MONITORING))
    api.kubectl("wait", "--for=condition=Established", "-f", str(MONITORING))
    for kind in ("servicemonitors", "prometheusrules"):
        wait_for(f"{kind} are served", lambda kind=kind: kind in api.kubectl(*SERVED), 30)
    return api


@pytest.mark.parametrize("name", VALUES)
def test_every_object_is_accepted_unchanged(helm, cluster_with_namespaces, name):
    text = helm.template(*VALUES[name])
    strictly = ("--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts")
    output = cluster_with_namespaces.kubectl("apply", *strictly, "-f", "-", stdin=text)
    assert output.count("serverside-applied") == len(helm.objects(*VALUES[name]))


# Roles of users


@pytest.fixture(scope="module")
def roles(helm: Helm, cluster_with_namespaces: Cluster) -> Iterator[Cluster]:
    """The user roles, and a user with each of the default roles."""
    cluster = cluster_with_namespaces
    with shared(helm, cluster):
        for role in ("view", "edit", "admin"):
            user = (role, f"--clusterrole={role}", f"--user={role}er", "--namespace=team-a")
            cluster.kubectl("create", "rolebinding", *user)
        yield cluster
        cluster.kubectl("delete", "rolebinding", "view", "edit", "admin", "--namespace=team-a")


VIEW = {("finetunejobs", verb) for verb in ("get", "list", "watch")}
VIEW |= {("finetunejobs/status", "get")}
EDIT = VIEW | {
    ("finetunejobs", verb) for verb in ("create", "delete", "deletecollection", "patch", "update")
}
# The rights of the operator are included, so that an admin of a namespace can install one.
RIGHTS = {"view": VIEW, "edit": EDIT, "admin": EDIT | {("finetunejobs/status", "patch")}}


@pytest.mark.parametrize("role", RIGHTS)
def test_view_edit_and_admin_extend_to_jobs(roles, role):
    kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview"}
    text = json.dumps(kind | {"spec": {"namespace": "team-a"}})
    asked = ("create", "--validate=false", "-f", "-", "-o", "json", f"--as={role}er")
    status = json.loads(roles.kubectl(*asked, stdin=text))["status"]
    assert RIGHTS[role] == {
        (resource, verb)
        for rule in status["resourceRules"]
        if "finetune.dev" in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


# Network policies. No network is simulated; the API server evaluates their selectors.


@pytest.fixture(scope="module")
def gang(roles: Cluster) -> Iterator[Left]:
    """The pods of a job and an unrelated pod."""
    with left_in(roles, "chart-gang") as found:
        other = {"name": "other", "image": "none"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}}
        text = json.dumps(pod | {"spec": {"containers": [other]}})
        roles.kubectl("create", "-n", found.namespace, "-f", "-", stdin=text)
        yield found


def selected(gang: Left, selector: dict) -> set[str]:
    """Return the pods that a selector of a policy selects."""
    terms = [f"{k}={v}" for k, v in selector.get("matchLabels", {}).items()]
    for term in selector.get("matchExpressions", []):
        assert term["operator"] == "Exists"
        terms.append(term["key"])
    found = ("get", "pods", "-n", gang.namespace, "-l", ",".join(terms), "-o", "name")
    return set(gang.api.kubectl(*found).split())


def test_the_policy_of_jobs_admits_only_the_gang_and_the_operator(helm, gang):
    values = (f"--set=networkPolicy.jobNamespaces={{{gang.namespace}}}",)
    objects = helm.objects(*values)
    policy, deployment = find(objects, "NetworkPolicy"), find(objects, "Deployment")
    pods = {f"pod/{pod['metadata']['name']}" for pod in gang.get("pods")} - {"pod/other"}
    assert len(pods) == 2
    assert policy["metadata"]["namespace"] == gang.namespace
    spec = policy["spec"]
    assert selected(gang, spec["podSelector"]) == pods
    peers, operator = spec["ingress"]
    assert list(peers) == ["from"], "all ports: collectives listen on any"
    assert selected(gang, peers["from"][0]["podSelector"]) == pods
    assert operator["ports"] == [{"port": names.REPORT_PORT}]
    (source,) = operator["from"]
    template = deployment["spec"]["template"]["metadata"]["labels"]
    assert source["podSelector"]["matchLabels"].items() <= template.items()
    where = [f"{k}={v}" for k, v in source["namespaceSelector"]["matchLabels"].items()]
    found = gang.api.kubectl("get", "namespaces", "-l", ",".join(where), "-o", "name").split()
    assert found == [f"namespace/{deployment['metadata']['namespace']}"]


def test_the_policy_of_the_operator_allows_only_reports_and_the_api_server(helm, gang):
    policy = find(helm.objects("--set", "networkPolicy.enabled=true"), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    server, reports = policy["egress"]
    assert server == {"ports": [{"port": 443}, {"port": 6443}]}
    assert reports["ports"] == [{"port": names.REPORT_PORT}]
    (target,) = reports["to"]
    workers = {
        f"pod/{pod['metadata']['name']}"
        for pod in gang.get("pods")
        if pod["metadata"].get("labels", {}).get(names.LABEL_ROLE) == "worker"
    }
    assert workers
    assert selected(gang, target["podSelector"]) == workers
    assert target["namespaceSelector"] == {}
