"""Tests every example of the documentation on the real API server or with the real data reader."""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
import yaml

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from finetune_operator.plan.pods import prepare_pod, worker_pods
from tests.api.jobs import make_job
from tests.api.server import JOBS, Server
from tests.operator import worlds
from tests.trainer.reading import examples

PAGES = [
    *(TREE / "README.md", TREE / "SECURITY.md"),
    *TREE.glob("examples/*.md"),
    *sorted(TREE.glob("docs/**/*.md")),
]


def fenced(*languages: str) -> dict[str, str]:
    """Return the fenced blocks of these languages by `page:line`."""
    found = {}
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                line = text[: match.start()].count("\n") + 1
                found[f"{page.relative_to(TREE)}:{line}"] = match[2]
    return found


FILES = {str(path.relative_to(TREE)): path.read_text() for path in TREE.glob("examples/*.yaml")}
HELPER = yaml.safe_load(FILES["examples/helper.yaml"])
MANIFESTS = FILES | fenced("yaml", "yml")
SHELL = fenced("sh", "console")
PATCHES = {
    f"{place} {number}": patch
    for place, text in SHELL.items()
    for number, patch in enumerate(re.findall(r"kubectl patch .* -p '(.*?)'", text))
}
DATA = [
    *re.findall(r"`(\{\"\w+\".*?\})`", (TREE / "docs/use/quick-start.md").read_text()),
    *re.findall(r"```json\n(.*)\n```", (TREE / "docs/use/data.md").read_text()),
]


@pytest.fixture(scope="module")
def restricted(control_plane: Cluster) -> Iterator[str]:
    """A namespace that admits only pods of the Pod Security level `restricted`."""
    name = "examples"
    control_plane.kubectl("create", "namespace", name)
    level = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", name, level)
    # Pods are refused until the service account exists.
    account = ("--for=create", "serviceaccount/default", "--timeout=30s")
    control_plane.kubectl("wait", *account, "--namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


def test_there_are_examples():
    assert len(FILES) >= 2
    assert any(place.startswith("README.md") for place in MANIFESTS)
    assert PATCHES
    assert len(DATA) == 9


def test_the_readme_shows_the_manifest_whose_output_it_shows():
    """It shows the output of `make demo`."""
    (shown,) = [text for place, text in MANIFESTS.items() if place.startswith("README.md")]
    run = (TREE / "examples" / "smollm2-chat.yaml").read_text()
    assert yaml.safe_load(shown) == yaml.safe_load(run)


@pytest.mark.cluster
@pytest.mark.parametrize("place", MANIFESTS)
def test_every_manifest_is_accepted_unchanged(
    control_plane: Cluster, server, restricted: str, place: str
):
    kinds = {document["kind"] for document in yaml.safe_load_all(MANIFESTS[place])}
    assert kinds <= {"FineTuneJob", "Pod", "ResourceQuota"}
    options = ("--dry-run=server", "--validate=strict", "--namespace", restricted)
    output = control_plane.kubectl("create", *options, "-f", "-", stdin=MANIFESTS[place])
    assert "created (server dry run)" in output


@pytest.mark.cluster
@pytest.mark.parametrize("place", [p for p in MANIFESTS if p.startswith("docs/operate/networks")])
def test_workers_with_special_hardware_are_accepted_as_pods(server: Server, place: str):
    spec = yaml.safe_load(MANIFESTS[place])["spec"]
    job = replace(worlds.committed(workers=spec["workers"]), namespace="default")
    (pod,) = worker_pods(job, 0, [0])
    (own,) = spec["workers"]["template"]["spec"]["containers"]
    pods = "/api/v1/namespaces/default/pods?dryRun=All&fieldValidation=Strict"
    code, stored = server.request("POST", pods, pod)
    assert code == 201, stored
    (found,) = (c for c in stored["spec"]["containers"] if c["name"] == "trainer")
    assert (
        found["resources"]["limits"].items()
        >= {name: str(value) for name, value in own["resources"]["limits"].items()}.items()
    )
    assert found["securityContext"]["capabilities"]["drop"] == ["ALL"]
    given = {entry["name"]: entry.get("value") for entry in found["env"]}
    assert given.items() >= {entry["name"]: entry["value"] for entry in own.get("env", [])}.items()


@pytest.mark.cluster
@pytest.mark.parametrize("place", PATCHES)
def test_every_patch_is_accepted_unchanged(server: Server, place: str):
    server.request("POST", JOBS, make_job("patched"))
    code, before = server.request("GET", f"{JOBS}/patched")
    assert code == 200
    change = json.loads(PATCHES[place])
    code, after = server.patch(f"{JOBS}/patched?dryRun=All&fieldValidation=Strict", change)
    assert code == 200, after
    expected = copy.deepcopy(before["spec"])
    for name, value in change["spec"].items():
        expected[name] = expected.get(name, {}) | value if isinstance(value, dict) else value
    assert after["spec"] == expected


def test_the_helper_pod_has_the_user_and_the_groups_of_the_trainer():
    image = (TREE / "trainer_image" / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)
    own = {"runAsUser": int(user[0]), "runAsGroup": int(user[1])}
    trainer = prepare_pod(worlds.make_job(), image="", inputs_digest="")["spec"]["securityContext"]
    assert HELPER["spec"]["securityContext"] == trainer | own


def test_files_are_copied_into_folders_that_exist_on_the_claim():
    """`kubectl cp` does not create the folders above its target."""
    (mount,) = HELPER["spec"]["containers"][0]["volumeMounts"]
    copied = 0
    for text in SHELL.values():
        made: list[str] = []
        for line in text.splitlines():
            if line.startswith("kubectl exec helper -- mkdir -p "):
                made += line.split()[6:]
            elif line.startswith("kubectl cp "):
                target = PurePosixPath(line.split()[-1].partition(":")[2])
                assert str(target.parent) in made
                assert target.is_relative_to(mount["mountPath"])
                copied += 1
    assert copied


@pytest.mark.parametrize("line", DATA)
def test_every_example_of_data_can_be_read(tmp_path, line: str):
    (tmp_path / "data.jsonl").write_text(line + "\n")
    (example,) = examples(tmp_path / "data.jsonl", "data.jsonl")
    assert example.texts()[-1]


def test_every_file_that_a_page_links_to_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(TREE)} links to {target}"


def test_every_make_target_of_the_pages_exists():
    targets = set(re.findall(r"^([a-z-]+):", (TREE / "Makefile").read_text(), re.MULTILINE))
    pages = [*PAGES, TREE / "CONTRIBUTING.md"]
    named = {
        name for page in pages for name in re.findall(r"^make ([a-z]+)", page.read_text(), re.M)
    }
    assert named
    assert named <= targets
