"""Fields, settings, commands, headings and tests that the pages name exist."""

import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest
from hack.crd import structural

from finetune_api.spec import FineTuneJobSpec
from finetune_cli.__main__ import _parser
from finetune_local.build import binaries
from finetune_local.cache import TREE
from tests.docs.pages import code, commands, field_exists

PAGES = {
    str(path.relative_to(TREE)): path.read_text()
    for path in [*TREE.glob("*.md"), *sorted(TREE.glob("docs/**/*.md"))]
}
GUIDES = [
    *("docs/operate/troubleshooting.md", "docs/operate/day-two.md", "docs/operate/storage.md"),
    *("docs/operate/restarts.md", "docs/operate/monitoring.md", "docs/operate/security.md"),
    *("docs/operate/networks.md", "docs/use/sizes.md", "docs/use/data.md", "docs/use/sources.md"),
    *("docs/use/quick-start.md", "docs/reference/files.md", "docs/reference/settings.md"),
]
WITH_KUBECTL = GUIDES[:2]
SECTIONS = [*structural(FineTuneJobSpec)["properties"], "spec", "status"]
PATH = re.compile(rf"({'|'.join(SECTIONS)})(\.[A-Za-z]+(\[\])?)+")


@pytest.mark.parametrize("name", GUIDES)
def test_fields_exist(name: str):
    named = {text.split(":")[0] for text in code(PAGES[name]) if PATH.fullmatch(text.split(":")[0])}
    assert [path for path in named if not field_exists(path)] == []


@pytest.mark.parametrize("name", GUIDES)
def test_variables_exist(name: str):
    sources = [*TREE.glob("operator/**/*.py"), *TREE.glob("trainer_image/**/*.py")]
    known = {name for file in sources for name in re.findall(r"\b[A-Z][A-Z_]+\b", file.read_text())}
    named = set(re.findall(r"\bFINETUNE_[A-Z_]+\b", PAGES[name]))
    assert named <= known


@pytest.mark.parametrize("name", GUIDES)
def test_commands_of_the_plugin_are_valid(name: str):
    for command in commands(PAGES[name]):
        if command.startswith("kubectl finetune "):
            _parser().parse_args(shlex.split(command)[2:])


@cache
def help_of(*arguments: str) -> str:
    """Return the help of a command of kubectl."""
    command = [str(binaries() / "kubectl"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def calls(text: str) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """Yield command, verb and options of each call of kubectl."""
    for command in commands(text):
        for part in re.split(r" *[|&>] *(?:xargs -I\{\} )?", command):
            if not part.startswith("kubectl "):
                continue
            parts = shlex.split(re.sub(r"^kubectl --namespace \S+ ", "kubectl ", part))
            parts = parts[: parts.index("--")] if "--" in parts else parts
            if parts[1] != "finetune":
                options = [part.split("=")[0] for part in parts if re.match("--?[a-z]", part)]
                names = list(itertools.takewhile(lambda part: not part.startswith("-"), parts[1:]))
                verb = names[
                    : {"rollout": 2, "create": 3 if "secret" in names else 2}.get(names[0], 1)
                ]
                yield command, tuple(verb), options


@pytest.mark.parametrize("name", GUIDES)
def test_commands_of_kubectl_have_these_options(name: str):
    found = list(calls(PAGES[name]))
    assert found or name not in WITH_KUBECTL
    for command, verb, options in found:
        known = help_of(*verb, "--help") + help_of("options")
        for option in options:
            assert re.search(rf"(^|\s){option}[ ,=:\[]", known), command


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_linked_headings_exist():
    anchors = {
        name: {slug(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
        for name, text in PAGES.items()
    }
    wrong = []
    for name, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", text):
            other = (TREE / name).parent.joinpath(target).resolve() if target else TREE / name
            if anchor not in anchors.get(str(other.relative_to(TREE)), set()):
                wrong.append(f"{name}: {target}#{anchor}")
    assert wrong == []


def test_named_tests_exist():
    there = "".join(file.read_text() for file in TREE.glob("tests/**/*.py"))
    named = re.findall(r"`(test_\w+)`", PAGES["docs/operate/security.md"])
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in there] == []
