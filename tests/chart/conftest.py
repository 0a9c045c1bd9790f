"""Fixtures: Helm, and an API server on which nothing is installed yet."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_local.build import binaries
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.chart.helm import Helm
from tests.tools.go_tool import HELM
from tests.tools.program import program

Paste = Callable[..., str]  # (commands, folder, **environment)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """A folder for the files of Helm."""
    return tmp_path_factory.mktemp("helm")


@pytest.fixture(scope="session")
def helm(home: Path) -> Helm:
    """Helm that does not know a cluster."""
    return Helm(home)


@pytest.fixture(scope="module")
def api(control_plane: Cluster) -> Cluster:
    """An API server without the objects of other tests, which Helm would refuse to adopt."""
    gone = ("--ignore-not-found", "--wait")
    control_plane.kubectl("delete", "crd", "finetunejobs.finetune.dev", *gone)
    control_plane.kubectl("delete", "clusterrole,clusterrolebinding", "finetune-operator", *gone)
    own = ("serviceaccount,role,rolebinding", "finetune-operator", "--namespace=finetune-system")
    control_plane.kubectl("delete", *own, *gone)
    return control_plane


@pytest.fixture(scope="module")
def admin(home: Path, api: Cluster) -> Helm:
    """Helm with the rights of a cluster administrator."""
    return Helm(home, api.kubeconfig)


@pytest.fixture(scope="module")
def paste(home: Path, api: Cluster) -> Paste:
    """A function that runs shell commands as an administrator and returns their output.

    They run in the root of the tree unless a folder is given.
    """
    programs = (str(program(HELM).parent), str(binaries()), os.environ["PATH"])
    env = os.environ | {
        "PATH": os.pathsep.join(programs),
        "KUBECONFIG": str(api.kubeconfig),
        "HELM_CACHE_HOME": str(home),
        "HELM_CONFIG_HOME": str(home),
        "HELM_DATA_HOME": str(home),
    }

    def run(commands: str, folder: Path = TREE, **more: str) -> str:
        shell = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(shell, env=env | more, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
        return done.stdout

    return run
