"""The operator is upgraded, removed and installed again while a gang trains."""

import pytest

from tests.nodes.operator_release import OperatorRelease
from tests.nodes.scenario import Scenario, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
LONG = {"maxSteps": 300, "globalBatchSize": 6, "sequenceLength": 128}


def test_upgrade_with_a_running_gang(scenario: Scenario, release: OperatorRelease):
    scenario.submit("kept", workers=workers(1), training=LONG)
    scenario.until_step("kept", 10)
    old = {pod["metadata"]["uid"] for pod in release.pods()}
    scenario.cluster.images.publish("next")
    release.install(tag="next")
    try:
        running = {pod["metadata"]["uid"] for pod in release.pods() if not _ends(pod)}
        assert running
        assert not running & old
        done = scenario.succeeded("kept")
        assert (done["attempt"], done.get("restarts", 0)) == (1, 0)
    finally:
        release.install()


def test_removed_and_installed_again(scenario: Scenario, release: OperatorRelease):
    scenario.submit("orphan", workers=workers(1), training=LONG)
    scenario.until_step("orphan", 10)
    release.uninstall()
    try:
        # The gang goes on, and the job stays.
        scenario.until_step("orphan", 100)
        assert scenario.status("orphan")["attempt"] == 1
    finally:
        release.install()
    done = scenario.succeeded("orphan")
    assert (done["attempt"], done.get("restarts", 0)) == (1, 0)


def _ends(pod) -> bool:
    return "deletionTimestamp" in pod["metadata"]
