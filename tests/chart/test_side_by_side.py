"""Tests several releases on one cluster, each with its own jobs and only the rights it needs."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from finetune_local.cluster import Cluster
from tests.chart.helm import CHART, Helm, HelmError, Release, shared
from tests.installed import wait_for
from tests.operator.test_live import CLAIM
from tests.operator.test_scope import apply, job, prepares

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAMESPACED = CHART / "examples" / "namespaced.yaml"
TEAMS = ("team-red", "team-blue")


@pytest.fixture(scope="module")
def definition(admin: Helm, api: Cluster) -> Iterator[Cluster]:
    """A cluster with the definition and the user roles, on which no operator runs."""
    namespaces = (*TEAMS, "lanes")
    with shared(admin, api):
        for namespace in namespaces:
            api.kubectl("create", "namespace", namespace)
            api.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=CLAIM)
        yield api
    api.kubectl("delete", "namespace", *namespaces, "--wait=false")


def lead(api: Cluster, home: Path, team: str) -> Helm:
    """Return Helm with the rights of an admin of one namespace and no cluster-wide rights."""
    api.kubectl("create", "serviceaccount", "lead", "--namespace", team)
    who = ("--clusterrole=admin", f"--serviceaccount={team}:lead", "--namespace", team)
    api.kubectl("create", "rolebinding", "lead", *who)
    return Helm(home, api.user_kubeconfig(team, "lead"))


def images(api: Cluster, namespace: str) -> dict[str, str]:
    """Return the image of each pod, which shows which operator created it."""
    found = json.loads(api.kubectl("get", "pods", "--namespace", namespace, "-o", "json"))
    return {
        pod["metadata"]["name"]: pod["spec"]["containers"][0]["image"] for pod in found["items"]
    }


def test_two_teams_each_install_an_operator_for_their_namespace(definition, home, tmp_path):
    with ExitStack() as stack:
        releases = {}
        for team in TEAMS:
            release = Release(lead(definition, home, team), definition, team)
            image = f"--set=trainer.image.tag={team}"
            release(
                "install", CHART, f"--values={NAMESPACED}", f"--set=namespaces={{{team}}}", image
            )
            stack.callback(release, "uninstall")
            operator = stack.enter_context(release.running(tmp_path / f"{team}.log"))
            releases[team] = release, operator
        apply(definition, "elsewhere", "lanes")
        for team in TEAMS:
            apply(definition, "mine", team)
        for team in TEAMS:
            wait_for(
                "its pod", lambda team=team: prepares(definition, team) >= {"mine-prepare"}, 30
            )
        for team, (release, operator) in releases.items():
            assert images(definition, team)["mine-prepare"] == f"finetune-trainer:{team}"
            assert "orbidden" not in operator.log
            held = release.get("lease", "finetune-operator")["spec"]["holderIdentity"]
            assert f"leading as {held}" in operator.log
        assert "status" not in job(definition, "lanes", "elsewhere")


def test_an_admin_of_a_namespace_cannot_install_for_another_one(definition, home):
    intruder = Release(lead(definition, home, "lanes"), definition, "lanes")
    with pytest.raises(HelmError, match=r'cannot .* in the namespace "team-red"'):
        intruder("install", CHART, f"--values={NAMESPACED}", "--set=namespaces={team-red}")
    intruder("uninstall", "--ignore-not-found")
