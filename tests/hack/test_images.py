"""Tests how images are built, and which files can get into them."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from finetune_local.cache import TREE

SCRIPT = TREE / "hack" / "images.py"
DOCKERFILES = [TREE / "operator" / "Dockerfile", TREE / "trainer_image" / "Dockerfile"]


def run(path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script with only one folder on PATH."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env={"PATH": str(path)} | env, capture_output=True, text=True)


def builder(folder: Path, name: str, code: int = 0, *, daemon: bool = True) -> None:
    """Create a program that records its arguments; without a daemon `info` fails, as docker's."""
    file = folder / name
    info = "exit 0" if daemon else "echo Cannot connect to the daemon >&2; exit 1"
    recorded = f'echo "$0" "$@" >> {folder}/calls\nexit {code}'
    file.write_text(f'#!/bin/sh\nif [ "$1" = info ]; then {info}; fi\n{recorded}\n')
    file.chmod(0o755)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().replace(f"{folder}/", "").splitlines()


def test_without_a_builder_the_message_names_what_to_install(tmp_path: Path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert "docker, podman, buildah" in done.stderr
    assert "apt-get install buildah" in done.stderr


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_any_builder_builds_both_images_with_the_version(tmp_path: Path, name: str):
    builder(tmp_path, name)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    operator, trainer = calls(tmp_path)
    number = version("finetune-operator")
    assert operator.startswith(
        f"{name} build --file operator/Dockerfile --tag finetune-operator:{number} "
    )
    assert f"--file trainer_image/Dockerfile --tag finetune-trainer:{number} " in trainer
    for call in (operator, trainer):
        assert f"--build-arg VERSION={number} --build-arg REVISION=" in call
        assert call.endswith(" .")


def test_registry_tag_and_flags_are_passed_on(tmp_path: Path):
    builder(tmp_path, "podman")
    env = {"REGISTRY": "registry.example/team", "TAG": "1.2", "BUILD_FLAGS": "--isolation chroot"}
    assert run(tmp_path, "--only", "operator", "--push", **env).returncode == 0
    built, pushed = calls(tmp_path)
    assert "--tag registry.example/team/finetune-operator:1.2 " in built
    assert built.endswith("--isolation chroot .")
    assert pushed == "podman push registry.example/team/finetune-operator:1.2"


def test_a_failed_build_is_named_and_stops_the_script(tmp_path: Path):
    builder(tmp_path, "buildah", code=125)
    done = run(tmp_path)
    assert done.returncode == 1
    assert "finetune-operator:" in done.stderr
    assert "buildah ended with 125" in done.stderr
    assert len(calls(tmp_path)) == 1


def test_a_requested_tool_is_not_replaced_by_another_one(tmp_path: Path):
    builder(tmp_path, "podman")
    done = run(tmp_path, TOOL="docker")
    assert done.returncode == 1
    assert "docker is not on PATH" in done.stderr


@pytest.mark.parametrize(
    ("broken", "works"), [("docker", "podman"), ("docker", "buildah"), ("podman", "buildah")]
)
def test_a_tool_without_a_daemon_is_passed_over(tmp_path: Path, broken: str, works: str):
    builder(tmp_path, broken, daemon=False)
    builder(tmp_path, works)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls(tmp_path)] == [works, works]
    assert f"{broken} does not work (Cannot connect to the daemon)" in done.stderr


def test_a_requested_tool_without_a_daemon_is_an_error(tmp_path: Path):
    builder(tmp_path, "docker", daemon=False)
    builder(tmp_path, "buildah")
    done = run(tmp_path, TOOL="docker")
    assert done.returncode == 1
    assert "docker does not work (Cannot connect to the daemon)" in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("part", ["operator", "trainer"])
def test_requirements_are_those_of_the_part(part: str):
    script = TREE / "hack" / "requirements.py"
    done = subprocess.run(
        [sys.executable, script, part], capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    assert any(name.startswith("pydantic>=") for name in names)
    assert any(name.startswith("torch==") for name in names) == (part == "trainer")
    assert any(name.startswith("kopf>=") for name in names) == (part == "operator")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_every_copied_file_exists_in_the_build_context(file: Path):
    allowed = [
        line[1:]
        for line in (TREE / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for line in file.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line and not line.startswith("COPY . "):
            source = line.split()[1]
            assert source in allowed
            assert (TREE / source).exists()
    for path in allowed:
        assert (TREE / path).exists(), path


def test_the_wheel_can_be_built_from_the_context():
    """The build context contains every folder that pyproject.toml packages."""
    project = tomllib.loads((TREE / "pyproject.toml").read_text())
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ignored = (TREE / ".dockerignore").read_text().splitlines()
    for package in packed:
        assert f"!{Path(package).parts[0]}" in ignored
    assert f"!{project['project']['readme']}" in ignored


@pytest.mark.slow
@pytest.mark.parametrize("module", ["finetune_operator", "finetune_trainer"])
def test_each_program_prints_its_version(module: str):
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == version("finetune-operator")
