"""The quota of the documentation limits the number of jobs."""

import json
import re
import time

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster, ClusterError
from tests.installed import install, wait_for
from tests.operator.worlds import make_spec

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def create(api: Cluster, name: str) -> None:
    item = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": make_spec(),
    }
    api.kubectl("create", "-n", "quota", "-f", "-", stdin=json.dumps(item))


def used(api: Cluster) -> str:
    found = json.loads(
        api.kubectl("get", "resourcequota", "finetunejobs", "-n", "quota", "-o", "json")
    )
    count: str = found["status"].get("used", {}).get("count/finetunejobs.finetune.dev", "")
    return count


def test_a_quota_limits_the_jobs_of_a_namespace(control_plane):
    install(control_plane)
    page = (TREE / "docs/operate/security.md").read_text()
    (quota,) = re.findall(r"```yaml\n(.*?kind: ResourceQuota.*?)```", page, re.S)
    control_plane.kubectl("create", "namespace", "quota")

    def counted() -> bool:
        # The controller knows a new kind after 30 s, and looks at a quota when it is created.
        control_plane.kubectl("delete", "resourcequota", "--all", "-n", "quota")
        control_plane.kubectl("apply", "-n", "quota", "-f", "-", stdin=quota.replace("100", "1"))
        time.sleep(3)
        return used(control_plane) == "0"

    wait_for("the controller of quotas", counted, 120)
    create(control_plane, "first")
    wait_for("the count of jobs", lambda: used(control_plane) == "1", 30)
    with pytest.raises(ClusterError, match=r"exceeded quota: finetunejobs"):
        create(control_plane, "second")
