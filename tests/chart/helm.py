"""Runs the real Helm, and the operator as the chart installs it."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from finetune_api.base import Object
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from finetune_local.ports import free_port
from tests.installed import Operator, wait_for
from tests.tools.go_tool import HELM
from tests.tools.program import program

CHART = TREE / "charts" / "finetune-operator"
VERSION: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
# Objects that a cluster has once, even with several operators.
SHARED = ("--show-only", "templates/crd.yaml", "--show-only", "templates/user-roles.yaml")
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))


class HelmError(Exception):
    """Helm failed; the message is its output."""


class Helm:
    """Runs Helm for one cluster or without one, with its files in `home`."""

    def __init__(self, home: Path, kubeconfig: Path | None = None) -> None:
        self._program = program(HELM)
        self._env = os.environ | {
            "HELM_CACHE_HOME": str(home),
            "HELM_CONFIG_HOME": str(home),
            "HELM_DATA_HOME": str(home),
            "KUBECONFIG": str(kubeconfig or home / "none"),
        }

    def __call__(self, *arguments: object) -> str:
        """Run Helm and return its output; HelmError if it fails."""
        command = [str(part) for part in (self._program, *arguments)]
        done = subprocess.run(command, env=self._env, check=False, capture_output=True, text=True)
        if done.returncode:
            raise HelmError(f"helm {arguments[0]}: {done.stderr.strip()}")
        return done.stdout

    def template(self, *arguments: object, namespace: str = "finetune-system") -> str:
        """Return the objects of the chart as text, in the order of their installation."""
        return self("template", "finetune-operator", CHART, "--namespace", namespace, *arguments)

    def objects(self, *arguments: object, namespace: str = "finetune-system") -> list[Object]:
        """Return the objects of the chart."""
        text = self.template(*arguments, namespace=namespace)
        return [item for item in yaml.safe_load_all(text) if item]


class Release:
    """One release on a cluster, whose operator can run as a process."""

    def __init__(
        self, helm: Helm, api: Cluster, namespace: str, name: str = "finetune-operator"
    ) -> None:
        self._helm, self._api = helm, api
        self.namespace, self.name = namespace, name

    def __call__(self, action: str, *arguments: object) -> str:
        """Run `helm ACTION NAME ...` in the namespace of the release."""
        return self._helm(action, self.name, *arguments, "--namespace", self.namespace)

    @property
    def deployment(self) -> Object:
        where = ("--namespace", self.namespace, "--output", "json")
        own = ("--selector", f"app.kubernetes.io/instance={self.name}")
        (found,) = json.loads(self._api.kubectl("get", "deployment", *own, *where))["items"]
        return dict(found)

    def get(self, kind: str, name: str) -> Object:
        """Return an object in the namespace of the release."""
        where = ("--namespace", self.namespace, "--output", "json")
        found: Object = json.loads(self._api.kubectl("get", kind, name, *where))
        return found

    @contextmanager
    def running(self, log: Path) -> Iterator[Operator]:
        """Run the operator during the block, and check that it stops on request."""
        operator = self.operator(log)
        operator.start()
        try:
            yield operator
            assert operator.stop() == 0, operator.log
        finally:
            operator.kill()

    def operator(self, log: Path) -> Operator:
        """Return an operator with the settings of the Deployment and the rights of its account."""
        spec = self.deployment["spec"]["template"]["spec"]
        settings = environment(spec["containers"][0])
        # Each pod has its own network; the processes of one machine share one.
        settings["HEALTH_PORT"] = str(free_port())
        config = self._api.user_kubeconfig(self.namespace, spec["serviceAccountName"])
        return Operator(self._api, log, config, **settings)


@contextmanager
def shared(helm: Helm, api: Cluster) -> Iterator[None]:
    """Install the definition and the user roles, without an operator."""
    text = helm.template(*SHARED)
    api.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    api.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev")
    admin = ("get", "clusterrole", "admin", "-o", "json")
    wait_for("aggregation", lambda: "finetunejobs/status" in api.kubectl(*admin), 30)
    yield
    api.kubectl("delete", "-f", "-", stdin=text)


def environment(container: Object) -> dict[str, str]:
    """Return the settings of the operator by their names without the prefix."""
    return {
        entry["name"].removeprefix("FINETUNE_"): entry["value"]
        for entry in container["env"]
        if entry["name"].startswith("FINETUNE_")
    }


def find(objects: list[Object], kind: str) -> Object:
    """Return the only object of a kind."""
    (found,) = [item for item in objects if item["kind"] == kind]
    return found
