"""An API server that accepts connections and answers nothing, because its process is stopped.

A refused connection is an answer; a frozen server makes requests, renewals and shutdowns wait.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_api.base import Object
from finetune_local.cluster import Cluster
from finetune_local.ports import free_port
from tests.installed import Operator, ask, install, ready, wait_for
from tests.operator.conftest import TESTER
from tests.operator.faults import Proxy
from tests.operator.kubelet import names
from tests.operator.test_live import CLAIM
from tests.operator.worlds import spec_of
from tests.tools import components

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DURATION = 10  # s of the lease
RESTART = 1.0  # s until an operator that ended is started again, as a kubelet does


class Deployment:
    """Operators that share a lease. Each is started again when it ends."""

    def __init__(self, api: Cluster, name: str, replicas: int, folder: Path) -> None:
        self.api, self.name = api, name
        self.proxies = [Proxy(api) for _ in range(replicas)]
        self.ports = [free_port() for _ in range(replicas)]
        self.operators: list[Operator] = []
        self._folder, self._stop = folder, threading.Event()
        self._thread = threading.Thread(target=self._restart)

    def __enter__(self) -> "Deployment":
        for number, proxy in enumerate(self.proxies):
            proxy.__enter__()
            operator = Operator(
                self.api,
                self._folder / f"{self.name}-{number}.log",
                proxy.kubeconfig(self.api.user_kubeconfig("default", "tester")),
                LEASE_NAME=self.name,
                LEASE_NAMESPACE="finetune-system",
                LEASE_DURATION_SECONDS=str(DURATION),
                JOB_SELECTOR=f"deployment={self.name}",
                HEALTH_PORT=str(self.ports[number]),
            )
            operator.start()
            self.operators.append(operator)
        self._thread.start()
        for port in self.ports:
            wait_for("a ready operator", lambda port=port: ready(port))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for operator in self.operators:
            operator.kill()
        for proxy in self.proxies:
            proxy.__exit__()

    def _restart(self) -> None:
        while not self._stop.wait(RESTART):
            for operator in self.operators:
                if not operator.running:
                    operator.start()

    def lease(self) -> Object:
        path = "/apis/coordination.k8s.io/v1/namespaces/finetune-system/leases"
        found: Object = ask(self.api, f"{path}/{self.name}")["spec"]
        return found

    def works(self, job: str) -> bool:
        """Create a job and wait for its prepare pod; return true."""
        item = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": job, "labels": {"deployment": self.name}},
            "spec": spec_of(job),
        }
        self.api.kubectl("create", "-f", "-", stdin=json.dumps(item))
        limit = DURATION + 10
        return bool(wait_for(f"{job} is prepared", lambda: names(self.api, job), limit))

    def writes(self, since: float) -> list[object]:
        """Return the writes that any replica has sent since a moment, except to the lease."""
        return [seen for proxy in self.proxies for seen in proxy.writes(since)]


@contextmanager
def frozen(api: Cluster) -> Iterator[None]:
    process = components.pid(api, "kube-apiserver")
    assert process is not None
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=CLAIM)
    control_plane.kubectl("apply", "-f", "-", stdin=TESTER)
    return control_plane


@pytest.mark.parametrize("seconds", [5, 30, 120])
@pytest.mark.timeout(600)
def test_operators_lead_again_after_the_api_server_was_frozen(api, tmp_path, seconds):
    """One replica and two replicas, which do not share jobs nor a lease."""
    one = Deployment(api, f"one-{seconds}", 1, tmp_path)
    two = Deployment(api, f"two-{seconds}", 2, tmp_path)
    with one, two:
        for deployment in (one, two):
            assert deployment.works(f"{deployment.name}-before")
        wait_for(
            "nothing more to write",
            lambda: not any(d.writes(time.monotonic() - 3) for d in (one, two)),
        )
        with frozen(api):
            began = time.monotonic()
            time.sleep(seconds)
            # No replica holds the lease for certain, so none sends anything but reads.
            if seconds > DURATION:
                for deployment in (one, two):
                    assert deployment.writes(began + DURATION) == []
        for deployment in (one, two):
            assert deployment.works(f"{deployment.name}-after")
            assert deployment.lease()["holderIdentity"]
            for port in deployment.ports:
                wait_for("every replica is ready", lambda port=port: ready(port), 60)
