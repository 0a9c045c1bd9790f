"""Two replicas as processes: which one leads, when the other takes over, what a paused one does."""

import json
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from finetune_local.cluster import Cluster
from finetune_local.ports import free_port
from tests.installed import Operator, install, ready, wait_for
from tests.operator.faults import Proxy
from tests.operator.kubelet import names
from tests.operator.test_live import CLAIM, apply

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LEASE = {
    "LEASE_NAME": "finetune-operator",
    "LEASE_NAMESPACE": "finetune-system",
    "LEASE_DURATION_SECONDS": "10",
}
DURATION = timedelta(seconds=10)
SLACK = timedelta(seconds=2)  # for a busy machine


@pytest.fixture
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=CLAIM)
    lease = ("lease", "finetune-operator", "--namespace=finetune-system")
    control_plane.kubectl("delete", *lease, "--ignore-not-found")
    return control_plane


@pytest.fixture
def second_proxy(api: Cluster) -> Iterator[Proxy]:
    with Proxy(api) as running:
        yield running


@pytest.fixture
def replicas(api: Cluster, proxy, second_proxy, tmp_path) -> Iterator[tuple[Operator, Operator]]:
    """The first leads, the second is a standby and ready. Each has a proxy of its own."""
    user = api.user_kubeconfig("finetune-system", "finetune-operator")
    first = Operator(api, tmp_path / "first.log", proxy.kubeconfig(user), **LEASE)
    port = free_port()
    through = second_proxy.kubeconfig(user)
    second = Operator(api, tmp_path / "second.log", through, HEALTH_PORT=str(port), **LEASE)
    first.start()
    wait_for("the first leads", lambda: leads(api, first))
    second.start()
    assert "standby as" in wait_for("the second is a standby", lambda: ready(port))
    yield first, second
    for replica in (first, second):
        replica.kill()


def lease(api: Cluster) -> dict:
    arguments = ("lease", "finetune-operator", "--namespace=finetune-system", "-o", "json")
    return json.loads(api.kubectl("get", *arguments))["spec"]


def leads(api: Cluster, replica: Operator) -> bool:
    held = [line.split()[-1] for line in replica.log.splitlines() if "leading as" in line]
    return bool(held) and lease(api)["holderIdentity"] == held[-1]


def acquired(api: Cluster) -> datetime:
    return datetime.fromisoformat(lease(api)["acquireTime"])


def works(api: Cluster, name: str) -> None:
    apply(api, name)
    wait_for("prepare pod", lambda: f"{name}-prepare" in names(api, name), 30)


def test_a_stop_hands_over_at_once_and_a_kill_when_the_lease_has_expired(
    api, replicas, second_proxy
):
    first, second = replicas
    works(api, "handed")
    assert not [seen for seen in second_proxy.seen if seen.writes and "/leases" not in seen.path]
    stopped = datetime.now(UTC)
    assert first.stop() == 0
    wait_for("the second leads", lambda: leads(api, second))
    assert acquired(api) - stopped < timedelta(seconds=2) + SLACK
    works(api, "over")
    first.start()
    wait_for("the first is a standby", lambda: first.log.count("operating in") == 2)
    second.kill()
    killed, renewed = datetime.now(UTC), datetime.fromisoformat(lease(api)["renewTime"])
    wait_for("the first leads again", lambda: leads(api, first))
    assert acquired(api) - killed < DURATION + SLACK
    assert acquired(api) - renewed >= DURATION
    works(api, "orphan")
    assert first.stop() == 0
    assert lease(api)["holderIdentity"] == ""


def test_a_leader_paused_for_longer_than_its_lease_writes_nothing_and_ends(api, replicas, proxy):
    first, second = replicas
    works(api, "before")
    # The status and the event follow the pod. A request that was sent before the pause may arrive.
    wait_for("nothing more to write", lambda: not proxy.writes(since=time.monotonic() - 3))
    paused = time.monotonic()
    first.signal(signal.SIGSTOP)
    wait_for("the second leads", lambda: leads(api, second))
    # There is work for a replica that believes to lead, and no other replica that does it.
    second.signal(signal.SIGSTOP)
    apply(api, "meanwhile")
    first.signal(signal.SIGCONT)
    assert first.wait(15) == 1
    assert "another replica may lead" in first.log
    assert proxy.writes(since=paused) == []
    assert names(api, "meanwhile") == set()
    second.signal(signal.SIGCONT)
    wait_for("the second still leads and works", lambda: names(api, "meanwhile"))


def test_liveness_does_not_expect_an_election_before_the_caches_are_filled(api, proxy, tmp_path):
    port = free_port()
    config = proxy.kubeconfig(api.user_kubeconfig("finetune-system", "finetune-operator"))
    operator = Operator(api, tmp_path / "only.log", config, HEALTH_PORT=str(port), **LEASE)
    try:
        with proxy.fault(path="/pods", code=503):
            operator.start()
            assert "watch on pods" in wait_for("the endpoint", lambda: ready(port, "healthz"))
            time.sleep(1)
            assert "leader election" not in ready(port, "healthz")
        wait_for("the election", lambda: "leader election" in ready(port, "healthz"))
    finally:
        operator.kill()
