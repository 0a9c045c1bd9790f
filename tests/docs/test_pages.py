"""What the pages name exists: fields, settings, commands, headings, tests."""

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
GUIDES = ["docs/failures.md", "docs/operations.md", "docs/storage.md", "SECURITY.md"]
SECTIONS = [*structural(FineTuneJobSpec)["properties"], "spec", "status"]
PATH = re.compile(rf"({'|'.join(SECTIONS)})(\.[A-Za-z]+(\[\])?)+")


@pytest.mark.parametrize("name", GUIDES)
def test_fields_exist(name: str):
    named = {text.split(":")[0] for text in code(PAGES[name]) if PATH.match(text)}
    assert named
    assert [path for path in named if not field_exists(path)] == []


@pytest.mark.parametrize("name", GUIDES)
def test_variables_exist(name: str):
    sources = [*TREE.glob("operator/**/*.py"), *TREE.glob("trainer_image/**/*.py")]
    known = {word for file in sources for word in re.findall(r"\b[A-Z][A-Z_]+\b", file.read_text())}
    named = set(re.findall(r"\bFINETUNE_[A-Z_]+\b", PAGES[name]))
    assert named <= known


@pytest.mark.parametrize("name", GUIDES)
def test_commands_of_ours_are_understood(name: str):
    for command in commands(PAGES[name]):
        if command.startswith("kubectl finetune "):
            _parser().parse_args(shlex.split(command)[2:])


@cache
def told(*arguments: str) -> str:
    """What kubectl says about one of its commands."""
    command = [str(binaries() / "kubectl"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def calls(text: str) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """Command, verb and options wherever kubectl is called."""
    for command in commands(text):
        for part in re.split(r" *[|&>] *(?:xargs -I\{\} )?", command):
            words = shlex.split(part.replace("--namespace finetune-system ", ""))
            if words[:1] == ["kubectl"] and words[1] != "finetune":
                verb = words[1:3] if words[1] in ("create", "rollout") else words[1:2]
                options = [word.split("=")[0] for word in words if word.startswith("-")]
                yield command, tuple(verb), options


@pytest.mark.parametrize("name", GUIDES[:-1])
def test_commands_of_kubectl_have_these_options(name: str):
    found = list(calls(PAGES[name]))
    assert found or name == "docs/storage.md"
    for command, verb, options in found:
        known = told(*verb, "--help") + told("options")
        for option in options:
            assert re.search(rf"(^|\s){option}[ ,=:\[]", known), command


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_headings_that_are_linked_exist():
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


def test_tests_that_are_named_exist():
    there = "".join(file.read_text() for file in TREE.glob("tests/**/*.py"))
    named = re.findall(r"`(test_\w+)`", PAGES["SECURITY.md"])
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in there] == []
