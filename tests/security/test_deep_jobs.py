"""Tests that a very deeply nested job, which the API server stores, does not block other jobs."""

import json

import pytest

from finetune_local.cluster import Cluster
from tests.installed import Operator, install, wait_for
from tests.operator.kubelet import names
from tests.operator.test_live import CLAIM, apply
from tests.operator.worlds import spec_of

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
JOBS = "/apis/finetune.dev/v1alpha1/namespaces/default/finetunejobs"


@pytest.fixture
def operator(control_plane: Cluster, tmp_path):
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=CLAIM)
    running = Operator(control_plane, tmp_path / "operator.log")
    running.start()
    yield running
    running.kill()


def deep(name: str, levels: int) -> str:
    """Return a job as text, because not every JSON library can write it."""
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec_of(name, workers={"template": {"spec": {"DEEP": "HERE"}}}),
    }
    return json.dumps(job).replace('"HERE"', '{"a":' * levels + "1" + "}" * levels)


@pytest.mark.parametrize("levels", [100, 300, 1500, 9000])
def test_a_deeply_nested_job_gets_a_message_and_others_continue(
    control_plane: Cluster, operator, tmp_path, levels
):
    file, name = tmp_path / "job.json", f"deep-{levels}"
    file.write_text(deep(name, levels))
    control_plane.kubectl("create", "--raw", JOBS, "-f", str(file))
    try:
        apply(control_plane, f"after-{levels}")
        wait_for("a prepare pod", lambda: names(control_plane, f"after-{levels}"), 30)
        operator.kill()
        operator.start()
        apply(control_plane, f"again-{levels}")
        wait_for("a prepare pod", lambda: names(control_plane, f"again-{levels}"), 30)
        wait_for("its message", lambda: "deeper than 32 levels" in message(control_plane, name), 30)
        assert "Traceback" not in operator.log
    finally:
        control_plane.kubectl("delete", "ftj", name, "--wait=false")


def message(api: Cluster, name: str) -> str:
    return api.kubectl("get", "ftj", name, "-o", "jsonpath={.status.message}")
