"""Several checkouts on one machine: none takes down a cluster of another one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.build import binaries
from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.api.jobs import make_job

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another checkout, which contains what the local cluster needs."""
    tree = tmp_path_factory.mktemp("other")
    for part in (
        "api",
        "client",
        "cli",
        "crds",
        "examples",
        "hack",
        "local",
        "operator",
        "Makefile",
    ):
        copy = shutil.copy if (TREE / part).is_file() else shutil.copytree
        copy(TREE / part, tree / part)
    return tree


@pytest.fixture(scope="module")
def environment(tmp_path_factory, other) -> dict[str, str]:
    """The environment of commands of the other checkout, with a state folder of their own."""
    packages = [str(other / part) for part in ("api", "client", "cli", "local", "operator")]
    state = tmp_path_factory.mktemp("state", numbered=False)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(packages),
        "XDG_STATE_HOME": str(state),
        "PYTHON": sys.executable,
    }


def run(environment: dict[str, str], *command: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def started(environment) -> Iterator[str]:
    """A cluster without nodes that the other checkout has started."""
    program = (sys.executable, "-m", "finetune_local")
    done = run(environment, *program, "up", "--name", "shared", "--nodes", "0")
    assert done.returncode == 0, done.stderr
    yield "shared"
    run(environment, *program, "down", "--name", "shared")


def own(environment: dict[str, str]) -> dict[str, str]:
    """Return the environment of commands of this checkout with the state folder of the other."""
    return os.environ | {"XDG_STATE_HOME": environment["XDG_STATE_HOME"]}


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_cluster_of_another_checkout_is_left_alone(started, environment, other, command):
    mine = own(environment)
    done = run(mine, sys.executable, "-m", "finetune_local", command, "--name", started)
    assert done.returncode == 1
    assert f"started from the checkout {other}" in done.stderr
    assert "finetune-local: " in done.stderr
    shown = run(mine, sys.executable, "-m", "finetune_local", "status", "--name", started)
    assert f"cluster {started} is up" in shown.stdout
    assert f"started from {other}" in shown.stdout


def test_demos_of_two_checkouts_have_clusters_of_their_own(environment):
    program = "from finetune_local.demo.run import NAME; print(NAME)"
    names = [
        run(where, sys.executable, "-c", program).stdout.strip()
        for where in (environment, os.environ | {})
    ]
    assert all(name.startswith("demo-") for name in names)
    assert names[0] != names[1]


def test_a_demo_does_not_take_down_a_cluster_that_trains(environment, other, started):
    """The other checkout's demo finds its own earlier cluster with a job that has not ended."""
    kubectl = (binaries() / "kubectl", "--kubeconfig", cluster(environment, started).kubeconfig)
    run(environment, *kubectl, "apply", "-f", other / "crds")
    established = "--for=condition=Established"
    run(environment, *kubectl, "wait", established, "crd/finetunejobs.finetune.dev")
    (other / "job.json").write_text(json.dumps(make_job("training")))
    assert run(environment, *kubectl, "create", "-f", other / "job.json").returncode == 0
    program = (
        "import finetune_local.demo.run as demo\n"
        f"demo.NAME = {started!r}\n"
        "raise SystemExit(demo.run(keep=False))"
    )
    done = run(environment, sys.executable, "-c", program)
    assert done.returncode == 1
    assert (
        "demo: the cluster of an earlier demo still runs training; wait for its end" in done.stderr
    )
    assert cluster(environment, started).supervisor() is not None


def cluster(environment: dict[str, str], name: str) -> Cluster:
    """Return a cluster in the state folder of the other checkout."""
    found = Cluster(name)
    found.directory = Path(environment["XDG_STATE_HOME"]) / "finetune-local" / name
    return found


def test_clean_takes_down_the_clusters_of_its_checkout_and_keeps_models(environment, other):
    program = (sys.executable, "-m", "finetune_local")
    done = run(environment, *program, "up", "--name", "own", "--nodes", "0")
    assert done.returncode == 0, done.stderr
    models = ("build/demo/model", "build/demo/workspace/runs/second/final")
    for name in (*models, "build/demo/workspace/runs/second/checkpoints", ".venv", "build/site"):
        (other / name).mkdir(parents=True)
        (other / name / "file").touch()
    # The packages of a broken environment cannot be imported.
    bare = environment | {"PYTHONPATH": ""}
    done = run(bare, "make", "-C", other, "clean", f"PYTHON={sys.base_prefix}/bin/python3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cluster own is down" in done.stdout
    assert cluster(environment, "own").supervisor() is None
    left = {str(path.relative_to(other)) for path in (other / "build").rglob("file")}
    assert left == {f"{name}/file" for name in models}
    for name in models:
        assert f"kept the model {name}" in done.stdout
    assert not (other / ".venv").exists()


def test_an_installation_without_the_sources_says_what_to_run(tmp_path):
    for name in ("api/finetune_api", "local/finetune_local"):
        shutil.copytree(TREE / name, tmp_path / Path(name).name)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run(environment, sys.executable, "-m", "finetune_local", "status")
    assert done.returncode == 1
    assert "run `make setup` there, and then .venv/bin/finetune-local" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert run(environment, sys.executable, "-m", "finetune_local", "--help").returncode == 0


def test_a_missing_package_is_named_with_the_remedy(other, environment, tmp_path):
    """As after `pip install --editable '.[cli]'`."""
    (tmp_path / "cryptography.py").write_text(
        "raise ModuleNotFoundError('no cryptography', name='cryptography')\n"
    )
    broken = environment | {"PYTHONPATH": f"{tmp_path}:{environment['PYTHONPATH']}"}
    done = run(broken, sys.executable, "-m", "finetune_local", "up", "--name", "bare")
    assert done.returncode == 1
    assert done.stderr == (
        "finetune-local: the package cryptography is not installed; run `make setup` in "
        f"{other}, or pip install --editable '{other}[local]'\n"
    )
