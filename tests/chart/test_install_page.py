"""The commands of docs/install.md, as they stand there and in that order."""

import re
from collections.abc import Iterator

import pytest

from finetune_local.cache import TREE
from finetune_local.cluster import Cluster
from tests.chart.helm import SHARED, Helm

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PAGE = (TREE / "docs" / "install.md").read_text()
# heading -> the commands below it
SECTIONS = {
    text.partition("\n")[0].strip("# "): re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    for text in re.split(r"^(?=##? )", PAGE, flags=re.M)
    if text
}
STORIES = {
    "a life": ("Installing with Helm", "Upgrading", "Uninstalling"),
    "a namespace": ("One operator for a namespace",),
    "two operators": ("Two operators for the same namespaces",),
}
RELEASES = {"finetune-operator": ("finetune-system", "team-a"), "canary": ("finetune-system",)}


@pytest.fixture
def installed(admin: Helm, api: Cluster) -> Iterator[None]:
    """What the commands install is removed afterwards."""
    if "team-a" not in api.kubectl("get", "namespaces"):
        api.kubectl("create", "namespace", "team-a")
    yield
    for release, namespaces in RELEASES.items():
        for namespace in namespaces:
            admin("uninstall", release, "--namespace", namespace, "--ignore-not-found")
    api.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=admin.template(*SHARED))


def test_every_command_of_the_page_is_told_below():
    told = {heading for headings in STORIES.values() for heading in headings}
    assert {heading for heading, blocks in SECTIONS.items() if blocks} == told


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("headings", STORIES.values(), ids=STORIES.keys())
def test_every_command_works_as_it_stands(paste, headings):
    for heading in headings:
        for block in SECTIONS[heading]:
            paste(block)
