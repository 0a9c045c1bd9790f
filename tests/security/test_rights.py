"""Tests that the operator has exactly the rights that it uses, and no right to get more."""

import json

import pytest

from finetune_local.cluster import Cluster, ClusterError
from finetune_local.ports import free_port
from tests.chart.helm import Helm, environment, find
from tests.chart.renderings import VALUES
from tests.installed import Operator, install
from tests.security import rights
from tests.security.audit import user

ROLES = ("Role", "ClusterRole")


@pytest.fixture(scope="module")
def helm(tmp_path_factory) -> Helm:
    return Helm(tmp_path_factory.mktemp("helm"))


def roles(objects) -> list:
    return [item for item in objects if item["kind"] in ROLES]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["operator/rbac", *VALUES])
def test_no_role_has_a_wildcard_a_secret_or_a_way_to_more_rights(helm, source):
    found = rights.objects() if source == "operator/rbac" else helm.objects(*VALUES[source])
    rules = [rule for role in roles(found) for rule in role["rules"]]
    assert rules
    for rule in rules:
        assert not rule.keys() - {"apiGroups", "resources", "resourceNames", "verbs"}
        names = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not [name for name in names if "*" in name]
        assert not {"secrets", "configmaps", "serviceaccounts/token", "pods/exec"} & {*names}
        assert not {"escalate", "bind", "impersonate"} & {*names}


@pytest.mark.cluster
@pytest.mark.slow
def test_the_operator_has_exactly_the_rights_of_its_requests(control_plane, tmp_path):
    asked = rights.record_everywhere(control_plane, tmp_path)
    granted = rights.granted(rights.objects())
    print(rights.table(granted, asked))
    assert asked.rights == granted
    assert asked.refused == []
    # The rule for the Lease names it, except for `create`, which RBAC cannot restrict to a name.
    leases = [r for r in asked.requests if r.right.resource == "leases"]
    assert {(r.namespace, r.name) for r in leases if r.right.verb != "create"} == {
        (rights.NAMESPACE, rights.ACCOUNT)
    }
    assert all(path.startswith(("/api", "/apis", "/version")) for path in asked.paths)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_namespaced_operator_has_exactly_the_rights_of_its_requests(
    helm, control_plane: Cluster, tmp_path
):
    install(control_plane)
    space, home = "rights-namespaced", "rights-home"
    values = (f"--set=namespaces={{{space}}}", "--set=restartBackoffSeconds=1")
    objects = helm.objects(*values, "--set=progressWriteSeconds=1", namespace=home)
    for name in (space, home):
        control_plane.kubectl("create", "namespace", name)
    own = [o for o in objects if o["metadata"].get("namespace") in (space, home)]
    own = [o for o in own if o["kind"] in ("Role", "RoleBinding", "ServiceAccount")]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": own})
    control_plane.kubectl("apply", "-f", "-", stdin=text)
    spec = find(objects, "Deployment")["spec"]["template"]["spec"]
    account = spec["serviceAccountName"]
    settings = environment(spec["containers"][0]) | {"HEALTH_PORT": str(free_port())}
    config = control_plane.user_kubeconfig(home, account)
    operator = Operator(control_plane, tmp_path / "operator.log", config, **settings)
    asked = rights.record(control_plane, operator, user(home, account), space)
    granted = rights.granted(roles(own))
    print(rights.table(granted, asked))
    assert asked.rights == granted == rights.granted(rights.objects())
    assert asked.refused == []
    assert {r.namespace for r in asked.requests} == {space, home}
    assert {r.right.resource for r in asked.requests if r.namespace == home} == {"leases"}


@pytest.mark.cluster
def test_the_operator_cannot_read_a_secret(control_plane: Cluster):
    install(control_plane)
    who = f"--as={user(rights.NAMESPACE, rights.ACCOUNT)}"
    control_plane.kubectl("create", "secret", "generic", "token", "--from-literal=a=s3cr3t")
    for asked in (("secret", "token"), ("secrets", "--all-namespaces")):
        with pytest.raises(ClusterError, match=r'cannot (get|list) resource "secrets"'):
            control_plane.kubectl("get", *asked, who)
    control_plane.kubectl("delete", "secret", "token")
