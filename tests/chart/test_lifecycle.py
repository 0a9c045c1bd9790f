"""Tests what happens to jobs during installation, upgrade, rollback and removal of a release."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster, ClusterError
from finetune_operator.plan.observe import Job
from tests.api.test_crd import DEFINITION
from tests.chart.helm import CHART, Helm, HelmError, Release
from tests.installed import finished, pods, wait_for
from tests.operator.kubelet import Kubelet
from tests.operator.older import OLDER, facts, left_in
from tests.operator.test_live import CLAIM, apply, prepare
from tests.operator.worlds import OUTPUT, progressed, result

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# The chart of the previous release. 0.0.1 is the first one, with the definition of commit 8ac3db3.
# Its operator created the job of `left_in`.
(OLDER_CHART,) = (Path(__file__).parent / "older").glob("*.tgz")
OLDER_STATUS = Job.of(OLDER["job"]).status.to_dict()
QUICK = ("--set=restartBackoffSeconds=1", "--set-json=progressWriteSeconds=0.5")


_NUMBERS = itertools.count(1)


@pytest.fixture
def release(admin: Helm, api: Cluster) -> Iterator[Release]:
    """A release that is not installed yet, in a namespace that admits only `restricted` pods."""
    namespace = f"chart-{next(_NUMBERS)}"
    api.kubectl("create", "namespace", namespace)
    level = "pod-security.kubernetes.io/enforce=restricted"
    api.kubectl("label", "namespace", namespace, level)
    api.kubectl("apply", "-f", "-", stdin=CLAIM)
    found = Release(admin, api, namespace)
    yield found
    found("uninstall", "--ignore-not-found")
    api.kubectl("delete", "crd", "finetunejobs.finetune.dev", "--ignore-not-found")
    api.kubectl("delete", "namespace", namespace, "--wait=false")


def schema(api: Cluster) -> dict:
    """Return the current schema of the spec on the API server."""
    found = json.loads(api.kubectl("get", "crd", "finetunejobs.finetune.dev", "-o", "json"))
    spec: dict = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return spec


def fields(spec: dict) -> set[str]:
    return {
        f"{part}.{k}" for part, v in spec["properties"].items() for k in v.get("properties", ())
    }


NOW = fields(DEFINITION["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"])


def uids(api: Cluster, job: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in pods(api, job)}


def test_an_installed_operator_works_and_refuses_a_second_one_for_all_jobs(
    release, admin, api, paste, tmp_path
):
    notes = release("install", CHART, *QUICK, "--set=replicas=2")
    found = wait_for("pods", lambda: _operator_pods(api, release), 30)
    assert {pod["spec"]["serviceAccountName"] for pod in found} == {"finetune-operator"}
    with pytest.raises(HelmError, match="cannot be imported"):
        Release(admin, api, "default", "second")("install", CHART)  # two operators for all jobs
    with release.running(tmp_path / "operator.log") as operator:
        paste(_to_paste(notes))
        wait_for("its prepare pod", lambda: uids(api, "first"), 30)
    assert "leading as" in operator.log
    assert "orbidden" not in operator.log
    assert release.get("lease", "finetune-operator")["spec"]["holderIdentity"] == ""
    for command in re.findall(r"^  (kubectl .*(?:get|describe) .*)$", notes, re.MULTILINE):
        assert "first" in paste(command.removesuffix(" --watch"))
    api.kubectl("delete", "pvc", "workspace", "--wait=false")


def _operator_pods(api: Cluster, release: Release) -> list[dict]:
    where = ("-n", release.namespace, "-l", f"app.kubernetes.io/instance={release.name}")
    found: list[dict] = json.loads(api.kubectl("get", "pods", *where, "-o", "json"))["items"]
    return found if len(found) == 2 else []


def _to_paste(notes: str) -> str:
    """Return the commands of the first job in the notes."""
    (found,) = re.findall(r"^kubectl .*? <<'EOF'$.*?^EOF$", notes, re.MULTILINE | re.DOTALL)
    return str(found)


def contains(spec: Any, older: Any) -> bool:
    """Return whether nothing is lost or changed. A newer definition may have added defaults."""
    if not isinstance(older, dict):
        return bool(spec == older)
    return all(key in spec and contains(spec[key], value) for key, value in older.items())


def test_an_upgrade_and_a_rollback_leave_a_running_gang_alone(release, api, tmp_path):
    release("install", OLDER_CHART)
    before = fields(schema(api))
    assert before < NOW
    with left_in(api, "chart-older") as left:
        known, versions = left.get("ftj")[0], left.versions
        assert len(versions) == 2
        image = "--set=trainer.image.repository=registry.example/other-trainer"
        release("upgrade", CHART, *QUICK, image)
        assert fields(schema(api)) == NOW
        with release.running(tmp_path / "operator.log"):
            # The operator reconciles the older one of two jobs first.
            apply(api, "newer")
            (pod,) = wait_for("its prepare pod", lambda: pods(api, "newer"), 30)
        assert pod["spec"]["containers"][0]["image"].startswith("registry.example/other")
        (looked,) = left.get("ftj")
        assert looked["metadata"]["generation"] == known["metadata"]["generation"]
        assert contains(looked["spec"], known["spec"])
        status = Job.of(looked).status.to_dict()
        assert facts(status) == facts(OLDER_STATUS)
        for field in ("phase", "attempt", "restarts", "resolved", "plan"):
            assert status[field] == OLDER_STATUS[field]
        release("rollback", "1")
        assert fields(schema(api)) == before
        assert left.get("ftj")[0]["spec"] == known["spec"]
        assert left.versions == versions


def test_jobs_outlive_the_release_and_the_next_release_continues_them(release, api, tmp_path):
    kubelet = Kubelet(api)
    release("install", CHART, *QUICK)
    with release.running(tmp_path / "operator.log"):
        apply(api, "kept")
        prepare(api, kubelet, "kept")
    before = uids(api, "kept")
    release("uninstall")
    with pytest.raises(ClusterError, match="not found"):
        release.get("serviceaccount", "finetune-operator")
    with pytest.raises(ClusterError, match="not found"):
        api.kubectl("get", "clusterrole", "finetune-operator")
    assert uids(api, "kept") == before
    release("install", CHART, *QUICK)
    with release.running(tmp_path / "operator.log"):
        message = result(output=OUTPUT, **progressed(100, saved=100))
        kubelet.end("kept-1-0", 0, message)
        kubelet.end("kept-1-1", 0)
        done = finished(api, "kept")
    assert (done["phase"], done["attempt"], len(done["attempts"])) == ("Succeeded", 1, 1)
    assert uids(api, "kept") == before


def test_without_keep_the_removal_of_the_release_deletes_all_jobs(release, api):
    notes = release("install", CHART, "--set=crds.keep=false")
    assert "deletes the CustomResourceDefinition and with it all jobs" in notes
    apply(api, "unkept")
    release("uninstall")  # the API server still deletes the jobs after Helm has returned
    api.kubectl("wait", "--for=delete", "crd/finetunejobs.finetune.dev", "--timeout=60s")


def test_a_definition_applied_by_hand_is_adopted_on_request(release, api):
    api.kubectl("apply", "-f", str(TREE / "crds"))
    api.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    apply(api, "hand-made")
    uid = "-o=jsonpath={.metadata.uid}"
    before = api.kubectl("get", "ftj", "hand-made", uid)
    with pytest.raises(HelmError, match="cannot be imported into the current release"):
        release("install", CHART)
    release("install", CHART, "--take-ownership", "--force-conflicts")
    assert api.kubectl("get", "ftj", "hand-made", uid) == before
    release("uninstall")
    assert api.kubectl("get", "ftj", "hand-made", uid) == before
