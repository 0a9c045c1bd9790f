"""The images of operator and trainer for the test cluster, with the sources of this tree.

An image has two layers. The lower one is the root file system that `make images` builds, without
the packages of this project. It is built again only if the Dockerfile or a dependency changes. The
upper one contains the packages, and is made in seconds. The lower layer of the trainer has 6 GB, so
no node downloads it: the registry serves an empty layer in its place, and each node gets hard links
of the files.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from hack.images import BASE, IMAGES

from finetune_api.base import Object
from finetune_local.build import BuildError
from finetune_local.cache import TREE, cache_folder, made_once
from finetune_local.machine import GB, Need, no_room
from tests.images import debian
from tests.nodes.configuration import PAUSE, REGISTRY
from tests.nodes.machine import Machine
from tests.nodes.registry import Registry

PARTS = ("operator", "trainer")
_SNAPSHOTS = "lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
# The packages of this project are beside their dependencies, in a folder per part of the project.
_SOURCES = ("api", "client", "operator", "trainer_image")
_BASE = f"localhost/{BASE}"
_COMPILE = (
    'mount --bind "$2" "$1/mnt" && '
    'exec chroot "$1" /opt/finetune/bin/python -m compileall -q -f '
    "--invalidation-mode unchecked-hash -s /mnt -p / /mnt"
)
_EXTRACT = (
    'container=$(buildah from --pull-never "$1") && '
    'cp -a "$(buildah mount "$container")" "$2/rootfs" && '
    'buildah inspect "$container" > "$2/inspect.json"'
)


class Images:
    """Both images in a registry, at a tag."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._unpacked = {part: unpacked(part) for part in PARTS}
        self._layers = {part: own_layer(self._unpacked[part]) for part in PARTS}

    def publish(self, tag: str) -> None:
        """Add both images to the registry. The upper layers of two tags are different."""
        for part in PARTS:
            lower, upper = _marker(part), _with_file(self._layers[part], "tag", tag)
            config = _config(self._unpacked[part])
            self._registry.add(f"base-{part}", "1", [lower], config)
            self._registry.add(IMAGES[part].name, tag, [lower, upper], config)

    def install(self, node: Machine) -> None:
        """Give a node that has no image yet the one of sandboxes, and the lower layers of both."""
        self._pull(node, PAUSE)
        for part in PARTS:
            self._pull(node, f"{REGISTRY}/base-{part}:1")
            (marker,) = node.disk.glob(f"{_SNAPSHOTS}/*/fs/base-{part}")
            root = self._unpacked[part] / "rootfs"
            subprocess.run(["cp", "-al", f"{root}/.", marker.parent], check=True)

    def _pull(self, node: Machine, image: str) -> None:
        node.run("ctr", "-n", "k8s.io", "images", "pull", "--plain-http", image)


def unpacked(part: str) -> Path:
    """Return a folder with the root file system of an image and the output of buildah about it.

    Building the trainer takes 10 minutes on 2 cores, and 25 GB meanwhile. Raises BuildError.
    """
    listed = [sys.executable, TREE / "hack" / "requirements.py", part]
    requirements = subprocess.run(listed, check=True, capture_output=True).stdout
    recipe = (TREE / IMAGES[part].dockerfile).read_bytes() + requirements + BASE.encode()
    folder = cache_folder() / f"image-{part}-{hashlib.sha256(recipe).hexdigest()[:16]}"
    return made_once(folder, lambda partial: _build(part, partial))


def own_layer(image: Path) -> bytes:
    """Return a layer, as a tar file, with the packages of this tree that an image contains."""
    names = json.loads((image / "packages.json").read_text())
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        folder = Path(name)
        for package, place in names.items():
            (source,) = [TREE / s / package for s in _SOURCES if (TREE / s / package).is_dir()]
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / place / package, ignore=ignored)
        enter = ["unshare", "--mount", "sh", "-c", _COMPILE, "sh"]
        subprocess.run([*enter, image / "rootfs", folder], check=True)
        return _tar({str(p.relative_to(folder)): p for p in sorted(folder.rglob("*"))})


def program_layer(program: Path) -> bytes:
    """Return a layer with one program in the root folder."""
    return _tar({program.name: program})


def _build(part: str, folder: Path) -> None:
    store = folder.with_name(f"{folder.name}-store")
    shutil.rmtree(store, ignore_errors=True)
    if refused := no_room([Need("images", (30 if part == "trainer" else 3) * GB, cache_folder())]):
        raise BuildError(refused)
    archive = debian.root_archive()
    store.mkdir()
    folder.mkdir()
    (store / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{store}/graph"\nrunroot = "{store}/run"\n'
    )
    flags = "--isolation chroot --pull-never"
    env = os.environ | {
        "CONTAINERS_STORAGE_CONF": str(store / "storage.conf"),
        "TMPDIR": str(store),
        "TOOL": "buildah",
        "BASE": _BASE,
        "TAG": "nodes",
        "BUILD_FLAGS": flags,
    }
    base = (
        f"c=$(buildah from scratch) && buildah add --quiet $c {archive} / && "
        f"buildah config --cmd bash $c && buildah commit --quiet --rm $c {_BASE}"
    )
    image = f"localhost/{IMAGES[part].name}:nodes"
    print(f"image of the {part}: building (10 minutes for the trainer, once)", flush=True)
    # In a mount namespace of their own, the mounts of buildah end with it.
    unshare = ["unshare", "--mount"]
    try:
        _run(env, *unshare, "sh", "-ec", base)
        _run(env, *unshare, sys.executable, str(TREE / "hack" / "images.py"), "--only", part)
        _run(env, *unshare, "sh", "-ec", _EXTRACT, "sh", image, str(folder))
    finally:
        shutil.rmtree(store, ignore_errors=True)
    _remove_own(folder)


def _remove_own(image: Path) -> None:
    """Remove the packages of this project from an image, and note where they were."""
    root, places = image / "rootfs", {}
    for package in root.glob("opt/finetune/lib/python3*/site-packages/finetune_*"):
        if package.suffix != ".dist-info":
            places[package.name] = str(package.parent.relative_to(root))
            shutil.rmtree(package)
    assert places, f"{root} contains no package of this project"
    (image / "packages.json").write_text(json.dumps(places))


def _run(env: dict[str, str], *command: str) -> None:
    # The output of a build is its progress.
    if subprocess.run(command, env=env, check=False).returncode:
        raise BuildError(f"{' '.join(command[:4])} ... failed; its output is above")


def _config(image: Path) -> Object:
    config: Object = json.loads((image / "inspect.json").read_text())["OCIv1"]["config"]
    return config


def _marker(part: str) -> bytes:
    """Return a layer with one empty file, by which its snapshot can be found."""
    return _with_file(None, f"base-{part}", "")


def _with_file(layer: bytes | None, name: str, text: str) -> bytes:
    """Return a layer with one more file."""
    output = io.BytesIO(layer or b"")
    with tarfile.open(fileobj=output, mode="a" if layer else "w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(text.encode()), 0o644
        tar.addfile(info, io.BytesIO(text.encode()))
    return output.getvalue()


def _tar(files: dict[str, Path]) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        for name, path in files.items():
            info = tar.gettarinfo(path, name)
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            with path.open("rb") if path.is_file() else io.BytesIO() as content:
                tar.addfile(info, content)
    return output.getvalue()
