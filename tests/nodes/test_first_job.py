"""The first job of an administrator: real images, DNS, Pod Security and three nodes."""

import pytest

from tests.nodes.operator_release import OperatorRelease
from tests.nodes.scenario import Scenario, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_first_job(scenario: Scenario, release: OperatorRelease):
    scenario.submit("first", workers=workers(3))
    done = scenario.succeeded("first")
    assert (done["attempt"], done.get("restarts", 0)) == (1, 0)
    assert not done["usage"]["estimated"]
    pods = scenario.pods()
    gang = [f"first-1-{index}" for index in range(3)]
    # One worker per node, and the logs of every pod are there to be read.
    assert {pods[name]["spec"]["nodeName"] for name in gang} == set(scenario.cluster.nodes)
    assert "step 60 of 60" in scenario.log(gang[0])
    for name in gang[1:]:
        scenario.log(name)  # fails if the pod was deleted
    assert release.restarts() == 0
