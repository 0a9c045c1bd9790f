"""Build the images of operator and trainer with docker, podman or buildah, whichever works.

`make images` builds both; `hack/images.py --help` lists the options. This script uses only the
standard library.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
TOOLS = ("docker", "podman", "buildah")
BASE = "debian:trixie-slim"


@dataclass(frozen=True)
class Image:
    name: str
    dockerfile: str


IMAGES = {
    "operator": Image("finetune-operator", "operator/Dockerfile"),
    "trainer": Image("finetune-trainer", "trainer_image/Dockerfile"),
}


def main() -> int:
    arguments = _parser().parse_args()
    tool = found_tool(arguments.tool)
    if tool is None:
        return 1
    tag, flags = arguments.tag or version(), shlex.split(arguments.flags)
    stamped = {"BASE": arguments.base, "VERSION": version(), "REVISION": revision()}
    names = {
        part: reference(arguments.registry, image, tag)
        for part, image in IMAGES.items()
        if arguments.only in (None, part)
    }
    for part, name in names.items():
        command = build_command(tool, IMAGES[part], name, stamped, flags)
        print("+", shlex.join(command), flush=True)
        if code := subprocess.call(command, cwd=TREE):
            print(f"images: {name} was not built: {tool} ended with {code}", file=sys.stderr)
            return 1
        if arguments.push and (code := subprocess.call([tool, "push", name])):
            print(f"images: {name} was not pushed: {tool} ended with {code}", file=sys.stderr)
            return 1
    for name in names.values():
        print("built", name)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make images",
        description="Build the images of operator and trainer.",
        allow_abbrev=False,
    )
    environment = os.environ.get
    parser.add_argument("--only", choices=sorted(IMAGES), help="build only this image")
    parser.add_argument(
        "--tool",
        choices=TOOLS,
        default=environment("TOOL") or None,
        help="$TOOL; default: the first one that works",
    )
    parser.add_argument(
        "--registry",
        default=environment("REGISTRY", ""),
        help="$REGISTRY: prefix of the names, for example registry.example/team",
    )
    parser.add_argument(
        "--tag", default=environment("TAG", ""), help="$TAG; default: the version of the project"
    )
    parser.add_argument(
        "--base",
        default=environment("BASE") or BASE,
        help=f"$BASE, a Debian image; default: {BASE}",
    )
    parser.add_argument(
        "--flags",
        default=environment("BUILD_FLAGS", ""),
        help="$BUILD_FLAGS: additional flags of the build, for example '--isolation chroot'",
    )
    parser.add_argument("--push", action="store_true", help="push the images after the build")
    return parser


def found_tool(wanted: str | None) -> str | None:
    """Return the first tool that works, or the requested one; print what is wrong with others."""
    tools = (wanted,) if wanted else TOOLS
    present = [tool for tool in tools if shutil.which(tool)]
    for tool in present:
        problem = failure_of(tool)
        if problem is None:
            return tool
        print(f"images: {tool} does not work ({problem})", file=sys.stderr)
    names = ", ".join(tools)
    missing = f"none of {names} is on PATH" if len(tools) > 1 else f"{names} is not on PATH"
    if not present:
        print(f"images: {missing}; install one (Debian: apt-get install buildah)", file=sys.stderr)
    return None


def failure_of(tool: str) -> str | None:
    """Return why a tool cannot build, None if it can: docker may be installed without a daemon."""
    try:
        done = subprocess.run([tool, "info"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"`{tool} info` ends with {done.returncode}"


def reference(registry: str, image: Image, tag: str) -> str:
    return f"{registry.rstrip('/')}/{image.name}:{tag}" if registry else f"{image.name}:{tag}"


def build_command(
    tool: str, image: Image, name: str, stamped: dict[str, str], flags: list[str]
) -> list[str]:
    arguments = [
        part for key, value in stamped.items() for part in ("--build-arg", f"{key}={value}")
    ]
    return [tool, "build", "--file", image.dockerfile, "--tag", name, *arguments, *flags, "."]


def version() -> str:
    project: dict[str, str] = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    return project["version"]


def revision() -> str:
    """Return the commit, with -dirty if files differ, or unknown outside of a repository."""
    git = ["git", "-C", str(TREE)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


if __name__ == "__main__":
    sys.exit(main())
