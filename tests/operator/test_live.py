"""The operator process on the real API server, with its service account; pods are scripted."""

import json
from collections.abc import Iterator

import pytest

from finetune_local.cluster import Cluster, ClusterError
from tests.installed import Operator, finished, install, status, wait_for
from tests.operator import podstatus
from tests.operator.kubelet import Kubelet, names
from tests.operator.worlds import OUTPUT, prepared, progressed, result, spec_of

pytestmark = pytest.mark.cluster

CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: w}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
"""


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=CLAIM)
    return control_plane


@pytest.fixture
def operator(api: Cluster, tmp_path) -> Iterator[Operator]:
    running = Operator(api, tmp_path / "operator.log")
    running.start()
    yield running
    running.kill()


def apply(api: Cluster, name: str, **changes) -> None:
    item = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec_of(name, **changes),
    }
    api.kubectl("create", "-f", "-", stdin=json.dumps(item))


def accepted(api: Cluster, name: str):
    found = {c["type"]: c for c in status(api, name).get("conditions", [])}
    return found.get("Accepted", {})


def refusal(api: Cluster, name: str):
    """Return the condition once the job is refused, which the first request for a pod shows."""
    found = accepted(api, name)
    return found if found.get("status") == "False" else None


def prepare(api: Cluster, kubelet: Kubelet, name: str) -> None:
    """Run the prepare pod and the first gang."""
    wait_for("prepare pod", lambda: f"{name}-prepare" in names(api, name))
    kubelet.run(f"{name}-prepare")
    kubelet.end(f"{name}-prepare", 0, result(prepared=prepared()))
    gang(api, kubelet, name, 1)


def gang(api: Cluster, kubelet: Kubelet, name: str, attempt: int) -> None:
    workers = {f"{name}-{attempt}-0", f"{name}-{attempt}-1"}
    wait_for(f"attempt {attempt}", lambda: workers <= names(api, name))
    for worker in workers:
        kubelet.run(worker)
    wait_for("Running", lambda: status(api, name).get("phase") == "Running")


def test_a_job_with_one_crash_runs_to_its_end(api, operator):
    kubelet = Kubelet(api)
    apply(api, "life")
    prepare(api, kubelet, "life")
    assert api.kubectl("get", "service", "life", "-o", "jsonpath={.spec.clusterIP}") == "None"
    kubelet.end("life-1-0", 88, result("Failed", reason="PeerLost", **progressed(20, saved=10)))
    kubelet.end("life-1-1", 137)
    gang(api, kubelet, "life", 2)
    termination = result(output=OUTPUT, **progressed(100, redone=10, saved=100))
    kubelet.end("life-2-0", 0, termination)
    kubelet.end("life-2-1", 0)
    done = finished(api, "life")
    assert (done["phase"], done["restarts"], done["attempt"]) == ("Succeeded", 1, 2)
    assert [a["outcome"] for a in done["attempts"]] == ["Failed", "Succeeded"]
    usage = done["usage"]
    assert usage["deviceSeconds"] == sum(
        usage[f"{part}DeviceSeconds"] for part in ("productive", "lost", "overhead")
    )
    api.kubectl("wait", "--for=condition=Succeeded", "ftj/life", "--timeout=1s")
    events = api.kubectl("get", "events", "--field-selector", "involvedObject.name=life")
    for reason in ("Preparing", "Prepared", "AttemptStarted", "Crashed", "Succeeded"):
        assert reason in events
    assert operator.stop() == 0


@pytest.mark.slow
def test_a_volume_that_is_not_mounted_and_a_silent_node_are_named(api, operator):
    kubelet = Kubelet(api)
    apply(api, "slow")
    wait_for("prepare pod", lambda: "slow-prepare" in names(api, "slow"))
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "slow-node"}}
    api.kubectl("create", "-f", "-", stdin=json.dumps(node))
    kubelet.bind("slow-prepare", "slow-node")
    unmounted = 'MountVolume.SetUp failed for volume "workspace": exit status 32'
    kubelet.cannot_mount("slow-prepare", unmounted)
    wait_for("FailedMount", lambda: status(api, "slow").get("reason") == "FailedMount")
    assert unmounted in status(api, "slow")["message"]
    prepare(api, kubelet, "slow")
    kubelet.silence("slow-1-1")
    wait_for("NodeNotReady", lambda: status(api, "slow").get("reason") == "NodeNotReady")
    assert "does not answer since" in status(api, "slow")["message"]
    kubelet.end("slow-1-0", 1, "Traceback (most recent call last):\n  File x\nValueError: boom\n")
    wait_for("the end of the attempt", lambda: "outcome" in status(api, "slow")["attempts"][0])
    assert "File x\nValueError" in status(api, "slow")["attempts"][0]["message"]
    wait_for("its event", lambda: "boom" in events_of(api, "slow"))
    lines = events_of(api, "slow").splitlines()
    selector = ("--field-selector", "involvedObject.name=slow")
    found = api.kubectl("get", "events", *selector, "-o", "name").splitlines()
    assert len(lines) == len(found)
    (line,) = [line for line in lines if "boom" in line]
    assert "Traceback (most recent call last): … ValueError: boom" in line


def events_of(api: Cluster, name: str) -> str:
    return api.kubectl(
        "get", "events", "--no-headers", "--field-selector", f"involvedObject.name={name}"
    )


@pytest.mark.slow
def test_an_operator_that_was_killed_continues_after_its_start(api, operator):
    kubelet = Kubelet(api)
    apply(api, "again")
    prepare(api, kubelet, "again")
    operator.kill()
    kubelet.end("again-1-1", 1, result("Failed", reason="Crashed", message="boom"))
    api.kubectl("delete", "pod", "again-1-0", "--grace-period=0", "--force")
    operator.start()
    gang(api, kubelet, "again", 2)
    first = status(api, "again")["attempts"][0]
    assert first["reason"] == "Crashed"
    assert "boom" in first["message"]
    assert first["estimated"]


@pytest.mark.slow
def test_a_missing_claim_and_a_bad_template_are_shown_and_can_be_corrected(api, operator):
    apply(api, "claimless", model={"source": "pvc://nowhere/model"})
    typo = {"spec": {"nodeSelectr": {"a": "b"}}}
    apply(api, "typo", workers={"template": typo})
    missing = wait_for("ClaimMissing", lambda: refusal(api, "claimless"))
    assert (missing["status"], missing["reason"]) == ("False", "ClaimMissing")
    assert "nowhere" in missing["message"]
    refused = wait_for("InvalidTemplate", lambda: refusal(api, "typo"))
    assert (refused["status"], refused["reason"]) == ("False", "InvalidTemplate")
    assert "nodeSelectr" in refused["message"]
    assert names(api, "claimless") == names(api, "typo") == set()
    claim = CLAIM.replace("name: w", "name: nowhere")
    api.kubectl("apply", "-f", "-", stdin=claim)
    wait_for("prepare pod", lambda: names(api, "claimless") == {"claimless-prepare"})
    # The status written before the pod was created still shows the refusal.
    wait_for("acceptance", lambda: accepted(api, "claimless")["status"] == "True")


@pytest.mark.slow
def test_a_service_of_another_owner_with_the_name_is_left_alone(api, operator):
    kubelet = Kubelet(api)
    api.kubectl("create", "service", "clusterip", "taken", "--tcp=80")
    apply(api, "taken")
    wait_for("prepare pod", lambda: "taken-prepare" in names(api, "taken"))
    kubelet.run("taken-prepare")
    kubelet.end("taken-prepare", 0, result(prepared=prepared()))
    found = wait_for("NameTaken", lambda: accepted(api, "taken").get("reason") == "NameTaken")
    assert found
    assert names(api, "taken") == {"taken-prepare"}
    api.kubectl("delete", "service", "taken")
    gang(api, kubelet, "taken", 1)
    assert accepted(api, "taken")["status"] == "True"


@pytest.mark.slow
def test_deleting_a_job_deletes_its_pods(api, operator):
    kubelet = Kubelet(api)
    apply(api, "gone")
    prepare(api, kubelet, "gone")
    api.kubectl("delete", "ftj", "gone")
    wait_for("no pod", lambda: names(api, "gone") == set())
    with pytest.raises(ClusterError, match="NotFound"):
        wait_for("no service", lambda: not api.kubectl("get", "service", "gone"), 20)


@pytest.mark.slow
def test_a_finished_job_is_not_written_again(api, operator):
    kubelet = Kubelet(api)
    apply(api, "rest")
    wait_for("prepare pod", lambda: "rest-prepare" in names(api, "rest"))
    kubelet.run("rest-prepare")
    kubelet.end("rest-prepare", 65, result("Failed", reason="BadData", message="line 17"))
    finished(api, "rest")

    def version() -> str:
        return api.kubectl("get", "ftj", "rest", "-o", "jsonpath={.metadata.resourceVersion}")

    before = version()
    operator.kill()
    operator.start()
    apply(api, "later")
    wait_for("the new operator works", lambda: "later-prepare" in names(api, "later"))
    assert version() == before


def retries(api: Cluster, name: str) -> str:
    """Return how many prepare pods have ended before the one that exists, or nothing."""
    path = r"jsonpath={.metadata.annotations.finetune\.dev/retry}"
    return api.kubectl("get", "pod", f"{name}-prepare", "--ignore-not-found", "-o", path)


NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bad-1"}}


@pytest.mark.slow
def test_a_node_that_refuses_a_worker_is_avoided_and_nothing_is_counted(api, operator):
    kubelet = Kubelet(api)
    api.kubectl("apply", "-f", "-", stdin=json.dumps(NODE))
    apply(api, "refused")
    wait_for("prepare pod", lambda: "refused-prepare" in names(api, "refused"))
    kubelet.run("refused-prepare")
    kubelet.end("refused-prepare", 0, result(prepared=prepared()))
    wait_for("attempt 1", lambda: {"refused-1-0", "refused-1-1"} <= names(api, "refused"))
    kubelet.run("refused-1-0")
    kubelet.bind("refused-1-1", "bad-1")
    kubelet.write("refused-1-1", podstatus.refused("UnexpectedAdmissionError", "no healthy device"))
    found = wait_for("release", lambda: status(api, "refused").get("avoidedNodes"))
    assert found == [{"name": "bad-1", "reason": "UnexpectedAdmissionError", "faults": 1}]
    first = status(api, "refused")["attempts"][0]
    assert (first["outcome"], first["reason"]) == ("Released", "UnexpectedAdmissionError")
    assert "pod refused-1-1 on node bad-1 could not start: no healthy device" in first["message"]
    wait_for("attempt 2", lambda: "refused-2-0" in names(api, "refused"), 60)
    second = api.kubectl("get", "pod", "refused-2-0", "-o", "jsonpath={.spec.affinity}")
    assert "bad-1" in second
    now = status(api, "refused")
    assert (now["attempt"], now.get("restarts", 0), now.get("countedRestarts", 0)) == (2, 0, 0)


@pytest.mark.slow
def test_a_prepare_pod_that_is_evicted_waits_and_keeps_its_cause(api, operator):
    kubelet = Kubelet(api)
    apply(api, "evicted")
    wait_for("prepare pod", lambda: "evicted-prepare" in names(api, "evicted"))
    kubelet.write("evicted-prepare", podstatus.refused("Evicted", "low on memory"))
    found = wait_for("count", lambda: status(api, "evicted").get("prepareInterruptions"))
    assert found == 1
    assert "low on memory" in status(api, "evicted")["prepareProblem"]
    wait_for("another pod", lambda: retries(api, "evicted") == "1")
    kubelet.run("evicted-prepare")
    kubelet.end("evicted-prepare", 0, result(prepared=prepared()))
    wait_for("attempt 1", lambda: status(api, "evicted").get("attempt") == 1)
