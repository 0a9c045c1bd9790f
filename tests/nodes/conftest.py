"""The cluster, with the chart installed, and a namespace for each scenario."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.build import BuildError
from finetune_local.cache import TREE
from finetune_local.machine import ClusterError
from tests.chart.helm import Helm
from tests.nodes import needs
from tests.nodes.cluster import NodeCluster
from tests.nodes.operator_release import OperatorRelease
from tests.nodes.record import Record
from tests.nodes.scenario import Scenario, make_inputs

RECORDS = TREE / "build" / "nodes"


@pytest.fixture(scope="session")
def cluster() -> Iterator[NodeCluster]:
    if problem := needs.unmet():
        pytest.exit(f"nodes: {problem}", returncode=1)
    try:
        nodes = NodeCluster()
    except (BuildError, ClusterError) as error:
        pytest.exit(f"nodes: {error}", returncode=1)
    try:
        nodes.up()
        yield nodes
    finally:
        nodes.down()


@pytest.fixture(scope="session")
def release(cluster: NodeCluster, tmp_path_factory) -> OperatorRelease:
    """The operator, installed with Helm in a namespace at Pod Security restricted."""
    helm = Helm(tmp_path_factory.mktemp("helm"), cluster.kubeconfig)
    installed = OperatorRelease(cluster, helm)
    installed.install()
    return installed


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def scenario(
    cluster: NodeCluster, release: OperatorRelease, inputs: Path, request
) -> Iterator[Scenario]:
    """A namespace, and a record of what happens in it in build/nodes."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:40].strip("-")
    own = Scenario(cluster, name, inputs)
    RECORDS.mkdir(parents=True, exist_ok=True)
    record = Record(cluster, name, RECORDS / f"{name}.txt")
    yield own
    record.close()
    own.remove()
