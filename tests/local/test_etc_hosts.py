"""Pods resolve the names of their peers exactly when DNS of a cluster would."""

import pytest

from finetune_local.node import etc_hosts
from tests.installed import wait_for
from tests.local.pods import container, create, get, logs, pod

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "gang", "namespace": "default"},
    "spec": {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"gang": "g"},
        "ports": [{"port": 1}],
    },
}


def member(name: str, **changes):
    item = pod(name, container("true"), hostname=name, subdomain="gang")
    item["metadata"] |= {"namespace": "default", "labels": {"gang": "g"}, "uid": name}
    item["status"] = {"podIP": "127.9.9.9", "phase": "Pending"} | changes
    return item


def service(**changes):
    return SERVICE | {"spec": SERVICE["spec"] | changes}


ready = {"conditions": [{"type": "Ready", "status": "True"}]}
elsewhere = member("b")
elsewhere["metadata"]["namespace"] = "other"
nameless = member("b")
del nameless["spec"]["hostname"]

CASES = {
    "a headless service that selects it": (service(), member("b"), True),
    "no service": (None, member("b"), False),
    "a service that selects others": (service(selector={"gang": "x"}), member("b"), False),
    "a service without a selector": (service(selector={}), member("b"), False),
    "a service with an address": (service(clusterIP="10.96.0.9"), member("b"), False),
    "not ready": (service(publishNotReadyAddresses=False), member("b"), False),
    "ready": (service(publishNotReadyAddresses=False), member("b", **ready), True),
    "no address yet": (service(), member("b", podIP=None), False),
    "ended": (service(), member("b", phase="Failed"), False),
    "another namespace": (service(), elsewhere, False),
    "no hostname": (service(), nameless, False),
}


@pytest.mark.parametrize("case", CASES)
def test_when_a_peer_has_a_name(case):
    headless, peer, named = CASES[case]
    text = etc_hosts.render(member("a"), "127.1.1.1", [peer], [headless] if headless else [])
    assert ("b.gang.default.svc" in text.split()) == named
    assert "127.1.1.1 a.gang.default.svc.cluster.local a\n" in text


@pytest.mark.cluster
@pytest.mark.slow
def test_pods_on_two_nodes_find_each_other_once_their_service_selects_them(cluster):
    script = "until getent hosts gang-{peer}.gang.default.svc; do sleep 0.1; done; sleep 2"
    items = []
    for own, peer in ((0, 1), (1, 0)):
        node = {"kubernetes.io/hostname": f"{cluster.name}-node-{own + 1}"}
        item = pod(f"gang-{own}", container(script.format(peer=peer)), nodeSelector=node)
        item["spec"] |= {"hostname": f"gang-{own}", "subdomain": "gang"}
        item["metadata"]["labels"] = {"gang": "g"}
        items.append(item)
    create(cluster, service(selector={"gang": "wrong"}), *items)
    for own in range(2):
        cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Running", f"pod/gang-{own}")
    assert [logs(cluster, f"gang-{own}") for own in range(2)] == ["", ""]
    patch = '{"spec": {"selector": {"gang": "g"}}}'
    cluster.kubectl("patch", "service", "gang", "-p", patch)
    for own, peer in ((0, 1), (1, 0)):
        found = wait_for("the address of its peer", lambda own=own: logs(cluster, f"gang-{own}"))
        address = get(cluster, f"gang-{peer}")["status"]["podIP"]
        assert found.split()[:2] == [address, f"gang-{peer}.gang.default.svc.cluster.local"]
