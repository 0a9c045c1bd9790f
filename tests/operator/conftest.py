"""Fixtures: the real API server behind a proxy that can inject faults."""

from collections.abc import Iterator

import pytest
from kubernetes import client, config

from finetune_local.cluster import Cluster
from tests.operator.faults import Proxy

# The administrator authenticates by a certificate, which the plain connection to the proxy lacks.
TESTER = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: tester, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tester}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: tester, namespace: default}]
"""


@pytest.fixture
def proxy(control_plane: Cluster) -> Iterator[Proxy]:
    with Proxy(control_plane) as running:
        yield running


@pytest.fixture
def configuration(control_plane: Cluster, proxy: Proxy) -> client.Configuration:
    """Return an administrator's configuration, which connects through the proxy."""
    control_plane.kubectl("apply", "-f", "-", stdin=TESTER)
    through = proxy.kubeconfig(control_plane.user_kubeconfig("default", "tester"))
    found = client.Configuration()
    config.load_kube_config(config_file=str(through), client_configuration=found)
    return found
