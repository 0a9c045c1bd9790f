"""Labels of running workers are removed or changed; the pods still belong to their gang."""

import time
from collections.abc import Iterator

import pytest

from finetune_api import names as api_names
from finetune_local.cluster import Cluster
from tests.installed import Operator, finished, install, status, wait_for
from tests.operator import test_live
from tests.operator.kubelet import Kubelet
from tests.operator.worlds import OUTPUT, progressed, result

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
_JOB_UID = f"{api_names.LABEL_JOB_UID}-"
CHANGES = {
    "uid": [_JOB_UID],
    "all": [f"{label}-" for label in api_names.POD_LABELS],
    "attempt": [f"{api_names.LABEL_ATTEMPT}=7", f"{api_names.LABEL_ROLE}-"],
    "other": [f"{api_names.LABEL_JOB_UID}=00000000-0000-0000-0000-000000000000"],
}


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    install(control_plane)
    control_plane.kubectl("apply", "-f", "-", stdin=test_live.CLAIM)
    return control_plane


@pytest.fixture
def operator(api: Cluster, tmp_path) -> Iterator[Operator]:
    running = Operator(api, tmp_path / "operator.log")
    running.start()
    yield running
    running.kill()


def _attempts(api: Cluster, job: str) -> list[str | None]:
    return [attempt.get("outcome") for attempt in status(api, job).get("attempts", [])]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("restarted", [False, True], ids=["watched", "restarted"])
def test_a_worker_without_its_labels_still_belongs_to_its_gang(api, operator, change, restarted):
    job = f"label-{change}-{'restarted' if restarted else 'watched'}"
    kubelet = Kubelet(api)
    test_live.apply(api, job)
    test_live.prepare(api, kubelet, job)
    if restarted:
        operator.kill()
    api.kubectl("label", "--overwrite", "pod", f"{job}-1-0", *CHANGES[change])
    if restarted:
        operator.start()
    until = time.monotonic() + 14  # the back-off of a restart is 10 s
    while time.monotonic() < until:
        assert _attempts(api, job) == [None], "the gang was given up"
        time.sleep(1)
    # The end of the worker is noticed although no watch reports it.
    kubelet.end(f"{job}-1-0", 0, result(output=OUTPUT, **progressed(100, saved=100)))
    kubelet.end(f"{job}-1-1", 0)
    done = finished(api, job)
    assert (done["phase"], done["attempt"], done["usage"]["estimated"]) == ("Succeeded", 1, False)


def test_a_worker_without_its_labels_that_is_deleted_ends_its_attempt(api, operator):
    kubelet = Kubelet(api)
    test_live.apply(api, "label-gone")
    test_live.prepare(api, kubelet, "label-gone")
    api.kubectl("label", "pod", "label-gone-1-0", _JOB_UID)
    time.sleep(2)
    api.kubectl("delete", "pod", "label-gone-1-0", "--grace-period=0", "--force")
    wait_for("its end", lambda: _attempts(api, "label-gone")[:1] == ["Failed"], 40)
