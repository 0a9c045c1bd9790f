"""Gangs that the real API server does not admit: quotas, webhooks, and names that are taken."""

import json
import time
from collections.abc import Iterator

import pytest

from finetune_local.cluster import Cluster
from tests.installed import Operator, install, status, wait_for
from tests.operator.faults import Proxy
from tests.operator.kubelet import Kubelet, names
from tests.operator.test_live import CLAIM, accepted, apply, gang
from tests.operator.worlds import prepared, result

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=CLAIM)
    return control_plane


@pytest.fixture
def operator(api: Cluster, proxy: Proxy, tmp_path) -> Iterator[Operator]:
    config = proxy.kubeconfig(api.user_kubeconfig("finetune-system", "finetune-operator"))
    running = Operator(api, tmp_path / "operator.log", config)
    running.start()
    yield running
    running.kill()


@pytest.fixture
def quota(api: Cluster) -> Iterator[None]:
    """A quota of two pods with devices, which leaves prepare pods alone."""
    # What tests of other files left in the namespace would count.
    api.kubectl("delete", "ftj", "--all", "--wait=false")
    api.kubectl("delete", "pods", "--all", "--grace-period=0", "--force")
    hard = {"requests.nvidia.com/gpu": "2"}
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}}
    api.kubectl("create", "-f", "-", stdin=json.dumps(body | {"spec": {"hard": hard}}))
    used = ("get", "resourcequota", "gpus", "-o", "jsonpath={.status.used}")
    wait_for("the quota to be counted", lambda: api.kubectl(*used))
    yield
    api.kubectl("delete", "resourcequota", "gpus", "--ignore-not-found")


def workers(replicas: int) -> dict[str, object]:
    return {"replicas": replicas, "devicesPerWorker": 1}


def prepare(api: Cluster, kubelet: Kubelet, name: str) -> None:
    wait_for("prepare pod", lambda: f"{name}-prepare" in names(api, name))
    kubelet.run(f"{name}-prepare")
    kubelet.end(f"{name}-prepare", 0, result(prepared=prepared()))


def remove(api: Cluster, *jobs: str) -> None:
    for job in jobs:
        api.kubectl("delete", "ftj", job, "--ignore-not-found", "--wait=false")
        for pod in names(api, job):
            api.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--ignore-not-found")


def test_a_gang_begins_only_when_the_quota_has_room_for_all_of_it(api, operator, quota):
    kubelet = Kubelet(api)
    apply(api, "two", workers=workers(2))
    prepare(api, kubelet, "two")
    gang(api, kubelet, "two", 1)
    apply(api, "pair", workers=workers(2))
    prepare(api, kubelet, "pair")
    apply(api, "three", workers=workers(3))
    refused = wait_for("pair waits", lambda: accepted(api, "pair").get("reason") == "QuotaExceeded")
    assert refused
    message = status(api, "pair")["message"]
    print(message)
    for part in ("all 2 pods", "exceeded quota: gpus", "requests.nvidia.com/gpu=2, used"):
        assert part in message
    wait_for("three never fits", lambda: accepted(api, "three").get("reason") == "QuotaExceeded")
    assert "raise the quota or use a smaller gang" in status(api, "three")["message"]
    assert names(api, "three") == set()
    assert names(api, "pair") == {"pair-prepare"}
    remove(api, "two")
    wait_for("pair begins", lambda: {"pair-1-0", "pair-1-1"} <= names(api, "pair"), 40)
    remove(api, "pair", "three")


def test_a_gang_beyond_a_quota_that_shrank_costs_few_requests(api, operator, proxy):
    """The operator sent 2,384 refused requests a minute for 300 workers."""
    kubelet = Kubelet(api)
    apply(api, "many", workers=workers(300))
    wait_for("prepare pod", lambda: "many-prepare" in names(api, "many"))
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    kubelet.run("many-prepare")
    with proxy.fault(methods=("POST",), path="/services", code=500, times=1):
        kubelet.end("many-prepare", 0, result(prepared=prepared()))
        wait_for("the commit", lambda: status(api, "many").get("attempt"))
        spec = {"hard": {"requests.nvidia.com/gpu": "12"}}
        api.kubectl("create", "-f", "-", stdin=json.dumps(quota | {"spec": spec}))
    since = time.monotonic()
    time.sleep(60)
    sent = [s for s in proxy.seen if s.at > since and s.method == "POST" and "/pods" in s.path]
    print(f"{len(sent)} requests for pods in a minute, {len(names(api, 'many'))} pods")
    api.kubectl("delete", "resourcequota", "few")
    remove(api, "many")
    assert len(sent) < 60


def test_a_webhook_that_is_down_is_shown_with_the_text_of_the_api_server(api, operator):
    hook = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "down"},
        "webhooks": [
            {
                "name": "pods.example.com",
                "clientConfig": {"url": "https://127.0.0.1:9/never"},
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                    }
                ],
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "failurePolicy": "Fail",
                "matchPolicy": "Exact",
            }
        ],
    }
    api.kubectl("create", "-f", "-", stdin=json.dumps(hook))
    try:
        time.sleep(2)  # until the API server uses it
        apply(api, "hooked")
        wait_for("a reason", lambda: accepted(api, "hooked").get("reason") == "RequestFailed", 30)
        found = status(api, "hooked")
        print(found["phase"], found["reason"], found["message"])
        assert 'failed calling webhook "pods.example.com"' in found["message"]
        assert names(api, "hooked") == set()
        events = api.kubectl("get", "events", "--field-selector", "involvedObject.name=hooked")
        assert "RequestFailed" in events
    finally:
        api.kubectl("delete", "validatingwebhookconfiguration", "down")
    wait_for("prepare pod", lambda: "hooked-prepare" in names(api, "hooked"), 90)
    wait_for("acceptance", lambda: accepted(api, "hooked")["status"] == "True")
    remove(api, "hooked")


def test_a_missing_priority_class_is_shown_before_anything_is_prepared(api, operator):
    apply(api, "classy", scheduling={"priorityClassName": "urgent"})
    wait_for("a reason", lambda: accepted(api, "classy").get("reason") == "Forbidden", 30)
    assert "no PriorityClass with name urgent" in status(api, "classy")["message"]
    assert names(api, "classy") == set()
    remove(api, "classy")


def test_a_second_job_on_a_storage_folder_waits_before_it_is_prepared(api, operator):
    apply(api, "owner")
    wait_for("prepare pod", lambda: "owner-prepare" in names(api, "owner"))
    apply(api, "late", checkpoints={"storage": "pvc://w/runs/owner/inner"})
    wait_for("it waits", lambda: accepted(api, "late").get("reason") == "StorageInUse", 30)
    assert "job owner, which has not ended" in status(api, "late")["message"]
    assert names(api, "late") == set()
    api.kubectl("delete", "ftj", "owner", "--wait=false")
    wait_for("prepare pod", lambda: "late-prepare" in names(api, "late"), 40)
    remove(api, "owner", "late")
