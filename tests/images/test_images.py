"""Tests the images as a user without a name and on a read-only root file system."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.e2e.conftest import VOLUME, manifest
from tests.images.unpacked import Unpacked
from tests.installed import Operator, finished, install
from tests.trainer import gang, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PARTS = ["operator", "trainer"]
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.fixture(params=PARTS)
def part(request) -> str:
    return request.param


@pytest.fixture
def image(part: str, request) -> Unpacked:
    return request.getfixturevalue(f"{part}_image")


def test_help_and_version(image: Unpacked, part: str):
    shown = image.run(*image.entrypoint, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"finetune_{part}" in shown.stdout
    assert image.run(*image.entrypoint, "--version").stdout.strip() == version("finetune-operator")


def test_labels_describe_the_image(image: Unpacked, part: str):
    prefix = "org.opencontainers.image."
    assert image.labels[f"{prefix}title"] == f"finetune-{part}"
    assert image.labels[f"{prefix}version"] == version("finetune-operator")
    head = subprocess.run(
        ["git", "-C", TREE, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    )
    assert image.labels[f"{prefix}revision"].startswith(head.stdout.strip())


def test_every_module_of_the_part_can_be_imported_and_no_other_part_exists(
    image: Unpacked, part: str
):
    done = image.run("python", "-c", IMPORT_ALL, f"finetune_{part}")
    assert done.returncode == 0, done.stderr[-3000:]
    others = {"operator", "trainer", "cli", "local"} - {part}
    for other in others:
        assert image.run("python", "-c", f"import finetune_{other}").returncode == 1


def test_there_is_no_compiler(image: Unpacked):
    for program in ("gcc", "g++", "cc", "nvcc", "ninja"):
        assert not [p for p in (image.root / "usr/bin").glob(program)], program


def test_the_operators_image_is_small(operator_image: Unpacked, tmp_path: Path):
    pushed = ["buildah", "push", "--quiet", "localhost/finetune-operator:test"]
    subprocess.run([*pushed, f"oci:{tmp_path}/image"], check=True, capture_output=True)
    blobs = (tmp_path / "image" / "blobs" / "sha256").iterdir()
    size = sum(blob.stat().st_size for blob in blobs)
    print(f"operator: {size / 1e6:.1f} MB compressed")
    assert size < 120e6


@pytest.fixture(scope="module")
def cluster():
    one = Cluster.up("test-images", devices=2, tied=True)
    yield one
    one.down()


def test_the_operators_container_runs_a_job(
    operator_image: Unpacked, cluster: Cluster, tmp_path: Path
):
    install(cluster)
    workspace = tmp_path / "workspace"
    tiny.make_model(workspace / "model")
    tiny.write_jsonl(workspace / "data" / "train.jsonl", tiny.make_messages(200))
    tiny.write_jsonl(workspace / "data" / "validation.jsonl", tiny.make_messages(20, seed=1))
    _open_to_all(workspace)
    cluster.kubectl("apply", "-f", "-", stdin=VOLUME.format(path=workspace))
    own = cluster.user_kubeconfig("finetune-system", "finetune-operator")
    # A kubeconfig without references to files, because the user may not read their folder.
    config = tmp_path / "kubeconfig"
    config.write_text(cluster.kubectl("config", "view", "--raw", "--flatten", kubeconfig=own))
    config.chmod(0o644)
    entry = operator_image.command(*operator_image.entrypoint, places=[config])
    operator = Operator(cluster, tmp_path / "operator.log", config, command=entry)
    operator.start()
    try:
        training = {"maxSteps": 20, "globalBatchSize": 4, "sequenceLength": 128}
        job = manifest("contained", training=training)
        cluster.kubectl("create", "-f", "-", stdin=json.dumps(job))
        done = finished(cluster, "contained", 240)
        assert done["phase"] == "Succeeded", done["message"] + operator.log[-3000:]
    finally:
        operator.kill()


def test_the_trainers_container_trains(trainer_image: Unpacked, tmp_path: Path):
    claim = tmp_path / "claim"
    tiny.make_model(claim / "model")
    tiny.write_jsonl(claim / "data" / "train.jsonl", tiny.make_messages(60, 1))
    tiny.write_jsonl(claim / "data" / "validation.jsonl", tiny.make_messages(10, 2))
    job = gang.make_job(claim)
    assert job.prepare().wait() == 0, job.log
    _open_to_all(claim)
    # The node appends the command of this machine's Python, which is left out.
    prefix = ["sh", "-ec", 'shift; exec python "$@"', "sh"]
    job.enter = lambda node: trainer_image.command(*prefix, places=[claim])
    job.start(gang.make_plan())
    _open_to_all(claim / "pods")
    assert job.wait() == [0, 0], job.log[-3000:]
    assert (job.storage / "final" / "model.safetensors").is_file()


def _open_to_all(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777)
    for parent in folder.parents:
        if parent.name.startswith(("pytest", "test_")):
            parent.chmod(0o755)
