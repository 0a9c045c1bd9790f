"""Nodes lose their power or their network."""

import os
import signal
from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_local.processes import is_alive
from tests.e2e.processes import rank_process
from tests.nodes.operator_release import OperatorRelease
from tests.nodes.scenario import Scenario, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
LONG = {"maxSteps": 300, "globalBatchSize": 6, "sequenceLength": 128}
HASTE = {"terminationGracePeriodSeconds": 10}


def test_power_cut(scenario: Scenario, release: OperatorRelease):
    scenario.submit("dark", training=LONG, runPolicy=HASTE)
    node = scenario.node_of("dark-1-1")
    release.leave(node)
    scenario.until_step("dark", 25)
    scenario.cluster.nodes[node].off()
    try:
        # The message names the node while it is awaited.
        scenario.until(
            f"{node} to be named", lambda: node in scenario.status("dark").get("message", ""), 120
        )
        done = scenario.succeeded("dark")
    finally:
        scenario.cluster.start_node(node)
        scenario.cluster.wait_ready(node)
    first, second, *more = done["attempts"]
    assert (first["outcome"], first["counted"]) == ("Failed", True)
    assert first.get("node") == node
    assert node in first["message"]
    assert second["firstStep"] >= 20
    assert not more  # one outage counts once
    events = [event["message"] for event in scenario.events("dark")]
    assert any(node in message for message in events), events


def test_cut_cable(scenario: Scenario, release: OperatorRelease):
    """The workers behind the cut cable go on, and must not disturb the next attempt."""
    scenario.submit("cut", training=LONG, runPolicy=HASTE)
    node, bound = scenario.node_of("cut-1-1"), datetime.now(UTC)
    release.leave(node)
    scenario.until_step("cut", 25)
    machine = scenario.cluster.nodes[node]
    machine.cut()
    try:
        scenario.cluster.wait_ready(node, ready=False)
        scenario.until(
            f"{node} to be named", lambda: node in scenario.status("cut").get("message", ""), 120
        )
        scenario.until("the second attempt", lambda: scenario.status("cut")["attempt"] == 2, 240)
        scenario.until_step("cut", 60, attempt=2)
        _suspend(scenario, "cut")
    finally:
        back = datetime.now(UTC)
        machine.join()
        scenario.cluster.wait_ready(node)
    # Once the node is back, its worker is removed and charged until its exact end.
    charged = _exact_account(scenario, "cut")
    assert charged >= (back - bound).total_seconds() - 2
    scenario.until("cut-1-1 to be deleted", lambda: "cut-1-1" not in scenario.pods(), 120)
    scenario.patch("cut", suspend=False)
    done = scenario.succeeded("cut")
    first, second, _ = done["attempts"]
    assert first["counted"]
    assert first.get("node") == node
    assert second["firstStep"] >= 20


def test_zombie(scenario: Scenario, release: OperatorRelease):
    """A worker behind a cut cable goes on, after a newer attempt has fenced off its storage."""
    scenario.submit("zombie", workers=workers(1), training=LONG, runPolicy=HASTE)
    node, bound = scenario.node_of("zombie-1-0"), datetime.now(UTC)
    release.leave(node)
    scenario.until_step("zombie", 25)
    machine = scenario.cluster.nodes[node]
    machine.cut()
    rank = rank_process("zombie", 0)
    os.kill(rank, signal.SIGSTOP)  # it must not end before the next attempt begins
    try:
        scenario.cluster.wait_ready(node, ready=False)
        scenario.until("the second attempt", lambda: scenario.status("zombie")["attempt"] == 2, 240)
        scenario.until_step("zombie", 30, attempt=2)
        os.kill(rank, signal.SIGCONT)
        scenario.until("the fence to end the zombie", lambda: not is_alive(rank), 240)
        ended = datetime.now(UTC)
        assert scenario.status("zombie")["attempt"] == 2
        _suspend(scenario, "zombie")
    finally:
        machine.join()
        scenario.cluster.wait_ready(node)
    charged = _exact_account(scenario, "zombie")
    assert abs(charged - (ended - bound).total_seconds()) < 15
    scenario.until("zombie-1-0 to be deleted", lambda: "zombie-1-0" not in scenario.pods(), 120)
    scenario.patch("zombie", suspend=False)
    done = scenario.succeeded("zombie")
    first, second, _ = done["attempts"]
    assert first["counted"]
    assert first.get("node") == node
    assert second["firstStep"] >= 20


def _suspend(scenario: Scenario, job: str) -> None:
    """Suspend a job: unlike a finished one, it still corrects its account.

    It is Suspending until the pod on the lost node is gone, too.
    """
    scenario.patch(job, suspend=True)
    phases = ("Suspending", "Suspended")
    scenario.until("the suspension", lambda: scenario.status(job)["phase"] in phases, 120)


def _exact_account(scenario: Scenario, job: str) -> float:
    """Wait until the end of every worker of attempt 1 is known; return its device seconds."""

    def exact() -> Any:
        first = scenario.status(job)["attempts"][0]
        return None if first.get("estimated") else first

    found = scenario.until("the account of attempt 1 to be exact", exact, 120)
    return float(found["deviceSeconds"])
