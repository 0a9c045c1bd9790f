"""The programs of a real node: built from Go modules into the cache, or installed by Debian."""

import hashlib
import os
import shutil
from pathlib import Path

from finetune_local import build
from finetune_local.cache import cache_folder, made_once
from tests.tools import go_tool
from tests.tools.go_tool import GoTool

_CONTAINERD = "v2.4.2"
_TOOLS = [
    GoTool("github.com/containerd/containerd/v2/cmd/containerd", _CONTAINERD),
    GoTool("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", _CONTAINERD),
    GoTool("github.com/containerd/containerd/v2/cmd/ctr", _CONTAINERD),
    GoTool("github.com/coredns/coredns", "v1.15.0"),
    go_tool.HELM,
]
CNI = Path("/usr/lib/cni")
# Program -> Debian package. runc needs a C library for seccomp, and images need a root file system.
_INSTALLED = {
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}


def missing() -> list[str]:
    """Return the Debian packages that have to be installed."""
    packages = {package for name, package in _INSTALLED.items() if not shutil.which(name)}
    if not (CNI / "ptp").exists():
        packages.add("containernetworking-plugins")
    return sorted(packages)


def search_path() -> str:
    """Return the PATH with every program, building those that are missing from the cache.

    Takes 8 minutes on 2 cores the first time. Raises BuildError.
    """
    folders = [build.binaries(), _node(), *(tool.build().parent for tool in _TOOLS)]
    return os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])


def _node() -> Path:
    """Return the folder with kubelet and kube-proxy (`node`) and the first process (`pause`)."""
    sources = [build.SOURCE / name for name in ("go.mod", "go.sum", "node/main.go")]
    sources.append(build.SOURCE / "pause/main.go")
    key = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:16]
    return made_once(cache_folder() / f"node-{key}", _build)


def _build(folder: Path) -> None:
    folder.mkdir()
    print("kubelet and kube-proxy: building from Go modules (2 minutes, once)", flush=True)
    build.build_packages(folder, "./node", "./pause")
