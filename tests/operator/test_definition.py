"""The CustomResourceDefinition is deleted while an operator runs; see the operations guide."""

import pytest

from finetune_local.cluster import Cluster
from finetune_local.ports import free_port
from tests.installed import Operator, install, pods, ready, wait_for
from tests.operator.kubelet import Kubelet, names
from tests.operator.test_live import CLAIM, apply, prepare

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_an_operator_waits_for_a_definition_that_was_deleted(control_plane: Cluster, tmp_path):
    api, kubelet, port = control_plane, Kubelet(control_plane), free_port()
    install(api)
    api.kubectl("apply", "-f", "-", stdin=CLAIM)
    operator = Operator(api, tmp_path / "operator.log", HEALTH_PORT=str(port))
    operator.start()
    try:
        # The garbage collector must have discovered the definition before it is deleted.
        apply(api, "known")
        wait_for("a prepare pod", lambda: names(api, "known"), 30)
        api.kubectl("delete", "ftj", "known")
        wait_for("it to be deleted with its job", lambda: not pods(api, "known"), 90)
        apply(api, "swept")
        prepare(api, kubelet, "swept")
        old = {pod["metadata"]["uid"] for pod in pods(api, "swept")}
        api.kubectl("delete", "crd", "finetunejobs.finetune.dev")
        wait_for("its pods to be deleted", lambda: not names(api, "swept"), 120)
        wait_for("a message in the log", lambda: "finetunejobs" in operator.log, 30)
        assert "HTTP 404" in operator.log
        assert ready(port)
        install(api)
        apply(api, "swept")
        wait_for("a new prepare pod", lambda: names(api, "swept") == {"swept-prepare"}, 90)
        assert not old & {pod["metadata"]["uid"] for pod in pods(api, "swept")}
        assert operator.stop() == 0
    finally:
        operator.kill()
