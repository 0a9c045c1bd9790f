"""Fixtures that build the images: `make test-images`, as root, with buildah and debootstrap."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from finetune_local.cache import TREE
from hack import images
from tests.images import debian
from tests.images.unpacked import Unpacked, buildah, mounted

BASE = f"localhost/{images.BASE}"


@pytest.fixture(scope="session")
def base() -> str:
    """An equivalent of the images' base."""
    for tool in ("buildah", "debootstrap"):
        assert shutil.which(tool), f"{tool} is not installed"
    assert os.getuid() == 0, "debootstrap and the mounts of these tests need root"
    archive = debian.root_archive()
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(archive), "/")
    buildah("config", "--cmd", "bash", container)
    buildah("commit", "--quiet", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="session")
def build(base: str) -> Iterator[Callable[[str], Unpacked]]:
    """A function that builds an image with `make images` and mounts it."""
    containers = []

    def one(part: str) -> Unpacked:
        # The isolation chroot works in containers that may not create containers.
        flags = "--isolation chroot --pull-never --layers"
        command = [sys.executable, TREE / "hack" / "images.py", "--only", part]
        env = os.environ | {"TOOL": "buildah", "BASE": base, "TAG": "test", "BUILD_FLAGS": flags}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        containers.append(buildah("from", "--pull-never", f"localhost/finetune-{part}:test"))
        return mounted(containers[-1])

    yield one
    for container in containers:
        buildah("rm", container)


@pytest.fixture(scope="session")
def operator_image(build: Callable[[str], Unpacked]) -> Unpacked:
    return build("operator")


@pytest.fixture(scope="session")
def trainer_image(build: Callable[[str], Unpacked]) -> Unpacked:
    return build("trainer")
