"""The commands of the pages on installing and upgrading, run unchanged and in their order."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.chart.conftest import Paste
from tests.chart.helm import SHARED, Helm, environment

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PAGES = [TREE / "docs" / "operate" / name for name in ("install.md", "upgrade.md")]
PAGE = "".join(page.read_text() for page in PAGES)
# heading -> the commands below it
SECTIONS = {
    text.partition("\n")[0].strip("# "): re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    for text in re.split(r"^(?=##? )", PAGE, flags=re.M)
    if text
}
FIRST = "Installing with Helm"
VALUES_FILE = SECTIONS[FIRST][0]
REGISTRY = "registry.example/team/"
# The base interpreter, because a virtual environment already contains the plugin.
PYTHON = getattr(sys, "_base_executable", sys.executable)
STORIES = {
    "a life": (FIRST, "Upgrading", "Restarting the operator", "Uninstalling"),
    "the plugin": ("The kubectl plugin",),
    "a namespace": ("One operator for a namespace",),
    "two operators": (FIRST, "Two operators for the same namespaces"),
}
RELEASES = {"finetune-operator": ("finetune-system", "team-a"), "canary": ("finetune-system",)}


@pytest.fixture
def reader(paste: Paste, tmp_path: Path) -> Paste:
    """Return a function that runs commands in a writable checkout with a home and the values."""
    programs, checkout = tmp_path / ".local" / "bin", tmp_path / "checkout"
    programs.mkdir(parents=True)
    (programs / "python3").symlink_to(PYTHON)
    checkout.mkdir()
    for item in TREE.iterdir():
        if not item.name.startswith("."):
            (checkout / item.name).symlink_to(item)
    env = {
        "HOME": str(tmp_path),
        # pip finds the dependencies here and makes no request to a registry.
        "PYTHONPATH": next(path for path in sys.path if (Path(path) / "hatchling").exists()),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # NB: 0 disables isolation, as the option does
    }

    def run(commands: str) -> str:
        return paste(f'export PATH="$HOME/.local/bin:$PATH"\n{commands}', checkout, **env)

    run(VALUES_FILE)
    return run


@pytest.fixture
def installed(admin: Helm, api: Cluster) -> Iterator[None]:
    """Remove afterwards what the commands install."""
    if "team-a" not in api.kubectl("get", "namespaces"):
        api.kubectl("create", "namespace", "team-a")
    yield
    for release, namespaces in RELEASES.items():
        for namespace in namespaces:
            admin("uninstall", release, "--namespace", namespace, "--ignore-not-found")
    api.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=admin.template(*SHARED))


def images(api: Cluster) -> set[str]:
    """Return the images of each installed operator and of its jobs."""
    own = ("--all-namespaces", "--selector=app.kubernetes.io/name=finetune-operator")
    found = json.loads(api.kubectl("get", "deployments", *own, "--output=json"))["items"]
    containers = [one["spec"]["template"]["spec"]["containers"][0] for one in found]
    return {image for c in containers for image in (c["image"], environment(c)["TRAINER_IMAGE"])}


def test_every_command_of_the_pages_is_run():
    run = {heading for headings in STORIES.values() for heading in headings}
    assert {heading for heading, blocks in SECTIONS.items() if blocks} == run


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("headings", STORIES.values(), ids=STORIES.keys())
def test_every_command_works_unchanged_and_keeps_the_images(reader, api, headings):
    for heading in headings:
        for block in SECTIONS[heading]:
            reader(block)
            assert [name for name in images(api) if not name.startswith(REGISTRY)] == [], block
