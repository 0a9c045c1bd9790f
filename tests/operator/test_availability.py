"""Jobs run to their end while a proxy makes the API server slow, refusing or unreachable."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from finetune_local.cluster import Cluster
from finetune_local.ports import free_port
from tests.installed import Operator, finished, install, pods, ready, status, wait_for
from tests.operator.faults import Proxy
from tests.operator.kubelet import Kubelet, names
from tests.operator.test_live import CLAIM, accepted, apply, gang, prepare
from tests.operator.worlds import OUTPUT, prepared, progressed, result

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=CLAIM)
    return control_plane


@pytest.fixture(scope="module")
def proxy(api: Cluster) -> Iterator[Proxy]:
    with Proxy(api) as running:
        yield running


@pytest.fixture(scope="module")
def operator(api: Cluster, proxy, tmp_path_factory) -> Iterator[Operator]:
    """One operator for all tests, which must survive all of them."""
    port = free_port()
    running = Operator(
        api,
        tmp_path_factory.mktemp("availability") / "operator.log",
        proxy.kubeconfig(api.user_kubeconfig("finetune-system", "finetune-operator")),
        HEALTH_PORT=str(port),
    )
    running.start()
    wait_for("ready", lambda: ready(port), 30)
    yield running
    assert ready(port)
    assert running.stop() == 0
    assert "ending" not in running.log


def end(kubelet: Kubelet, name: str, attempt: int) -> None:
    kubelet.end(f"{name}-{attempt}-0", 0, result(output=OUTPUT, **progressed(100, saved=100)))
    kubelet.end(f"{name}-{attempt}-1", 0)


WRITES = ("POST", "PATCH", "DELETE")
FAULTS = {
    "refused": [{"methods": (method,), "code": 500, "times": 2} for method in WRITES],
    "conflict": [{"methods": ("PATCH",), "code": 409, "times": 3}],
    "later": [{"code": 429, "headers": {"Retry-After": "1"}, "times": 4, "watch": False}],
    "lost": [{"methods": (method,), "lose": True, "times": 2} for method in WRITES],
    "slow": [{"delay": 0.25, "watch": False}],
    "gone": [
        {"path": path, "watch": True, "code": 410, "times": 2} for path in ("pods", "finetunejobs")
    ],
    "broken": [
        {"path": path, "watch": True, "body": "<html>", "code": 502, "times": 2}
        for path in ("pods", "finetunejobs")
    ],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_ends_as_without_the_fault(api, operator, proxy, fault):
    kubelet, name = Kubelet(api), f"life-{fault}"
    with ExitStack() as faults:
        active = [faults.enter_context(proxy.fault(**what)) for what in FAULTS[fault]]
        proxy.cut_streams()
        apply(api, name)
        prepare(api, kubelet, name)
        proxy.cut_streams()
        end(kubelet, name, 1)
        done = finished(api, name, 40)
        # Whether a job needs deletions is up to the policies.
        assert all(what.met or what.methods == ("DELETE",) for what in active)
    assert (done["phase"], done["attempt"], done.get("restarts", 0)) == ("Succeeded", 1, 0)
    parts = ("productive", "lost", "overhead")
    usage = done["usage"]
    assert usage["deviceSeconds"] == sum(usage[f"{part}DeviceSeconds"] for part in parts)
    assert operator.running


def test_nothing_is_lost_while_the_api_server_is_away_and_it_is_not_flooded(api, operator, proxy):
    kubelet = Kubelet(api)
    apply(api, "away")
    prepare(api, kubelet, "away")
    before = len(proxy.seen)
    with proxy.fault(cut=True):
        proxy.cut_streams()
        kubelet.end("away-1-0", 1, result("Failed", reason="Crashed"))
        kubelet.end("away-1-1", 1)
        apply(api, "created-meanwhile")
        time.sleep(6)
        assert operator.running
        assert len(proxy.seen) - before < 80
    gang(api, kubelet, "away", 2)
    end(kubelet, "away", 2)
    assert finished(api, "away")["phase"] == "Succeeded"
    wait_for("the other", lambda: names(api, "created-meanwhile"), 30)


def test_a_job_deleted_and_created_again_under_its_name_is_a_new_one(api, operator):
    kubelet = Kubelet(api)
    apply(api, "twice")
    prepare(api, kubelet, "twice")
    held = json.dumps({"metadata": {"finalizers": ["example.com/hold"]}})
    for index in (0, 1):
        api.kubectl("patch", "pod", f"twice-1-{index}", "--type=merge", "-p", held)
    old = {pod["metadata"]["uid"] for pod in pods(api, "twice")}
    api.kubectl("delete", "ftj", "twice", "--cascade=background")
    apply(api, "twice")
    wait_for("prepare pod", lambda: _live(api, "twice-prepare", old), 120)
    kubelet.run("twice-prepare")
    kubelet.end("twice-prepare", 0, result(prepared=prepared()))
    wait_for("it waits", lambda: accepted(api, "twice").get("reason") == "WaitingForOldPods", 60)
    assert not (status(api, "twice").get("workers") or {}).get("running")
    for index in (0, 1):
        api.kubectl("patch", "pod", f"twice-1-{index}", "--type=json", "-p", _RELEASE)
    wait_for("new pods", lambda: _live(api, "twice-1-0", old) and _live(api, "twice-1-1", old), 60)
    gang(api, kubelet, "twice", 1)
    end(kubelet, "twice", 1)
    assert finished(api, "twice")["phase"] == "Succeeded"


_RELEASE = json.dumps([{"op": "remove", "path": "/metadata/finalizers"}])


def _live(api: Cluster, name: str, old: set[str]) -> bool:
    found = [p["metadata"] for p in pods(api, name.split("-")[0]) if p["metadata"]["name"] == name]
    return bool(found) and found[0]["uid"] not in old


def test_a_pod_of_another_owner_with_the_name_of_a_worker_is_left_alone(api, operator):
    kubelet = Kubelet(api)
    api.kubectl("run", "foreign-1-1", "--image=other")
    uid = api.kubectl("get", "pod", "foreign-1-1", "-o", "jsonpath={.metadata.uid}")
    apply(api, "foreign")
    wait_for("prepare pod", lambda: "foreign-prepare" in names(api, "foreign"), 30)
    kubelet.run("foreign-prepare")
    kubelet.end("foreign-prepare", 0, result(prepared=prepared()))
    wait_for("it is shown", lambda: accepted(api, "foreign").get("reason") == "NameTaken", 30)
    assert "foreign-1-1" in accepted(api, "foreign")["message"]
    assert api.kubectl("get", "pod", "foreign-1-1", "-o", "jsonpath={.metadata.uid}") == uid
    api.kubectl("delete", "pod", "foreign-1-1", "--grace-period=0", "--force")
    gang(api, kubelet, "foreign", 1)
    end(kubelet, "foreign", 1)
    assert finished(api, "foreign")["phase"] == "Succeeded"


def test_the_page_of_a_proxy_is_not_written_to_the_log(api, operator, proxy):
    page = "<html>authorization: Bearer s3cr3t</html>"
    with proxy.fault(methods=("POST", "GET"), code=502, body=page, times=12):
        proxy.cut_streams()
        apply(api, "quiet")
        wait_for("prepare pod", lambda: names(api, "quiet"), 40)
    assert "s3cr3t" not in operator.log
