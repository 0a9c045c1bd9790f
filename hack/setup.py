"""Make .venv: a thin environment of this tree on top of a cached one with the dependencies.

The dependencies are gigabytes, the tree is not. They are installed once into the cache folder, in
an environment whose name is a hash of what pyproject.toml asks for and of the interpreter; every
clone of this repository shares it. `.venv` holds the tree itself (editable) and sees the cached
packages through one .pth file. Standard library only: this runs before anything is installed.
"""

# NB: an older Python must be able to read this file, or it could not say that it is too old.
from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
MINIMUM_PYTHON = (3, 11)
OWN = "finetune-operator["
# The interpreter itself, also when a virtual environment is active: ours may be about to go.
PYTHON = getattr(sys, "_base_executable", sys.executable)


def main() -> int:
    if sys.version_info < MINIMUM_PYTHON:
        return fail(
            f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; "
            "name another one: make PYTHON=python3.12 ..."
        )
    import tomllib

    sys.path.insert(0, str(TREE / "local"))
    from finetune_local.cache import cache_folder

    try:
        import ensurepip  # noqa: F401 - Debian ships Python without it
        import venv  # noqa: F401
    except ImportError:
        return fail(
            "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"
        )
    try:
        cache = cache_folder()
    except OSError as error:
        return fail(f"{error}; set FINETUNE_CACHE to a folder that can be written")
    requirements = dependencies(tomllib.loads((TREE / "pyproject.toml").read_text()))
    key = hashlib.sha256(
        "\n".join([sys.version, sys.base_prefix, *requirements]).encode()
    ).hexdigest()[:16]
    shared = cache / f"venv-{key}"
    with Lock(cache / "venv.lock"):
        refused = refusal(shared, for_demo="--demo" in sys.argv[1:])
        if refused:
            return fail(refused)
        if not (shared / ".complete").exists():
            install(shared, requirements)
    link(shared)
    return 0


def refusal(shared: Path, *, for_demo: bool) -> str | None:
    """What this machine lacks for all that follows, said before gigabytes are fetched."""
    from finetune_local import build
    from finetune_local.demo import inputs
    from finetune_local.machine import GB, Need, cluster_needs, no_namespaces, no_room

    needs = build.needs()
    if not (shared / ".complete").exists():
        needs += [
            Need("Python packages", 6 * GB, shared.parent),
            Need("pip's downloads", 4 * GB, Path(tempfile.gettempdir())),
        ]
    if for_demo:
        needs += [*cluster_needs(), *inputs.needs()]
    return no_namespaces() or no_room(needs)


def dependencies(project: dict) -> list[str]:
    """Everything any part needs, without the self-reference of the dev extra."""
    table = project["project"]
    groups = [table["dependencies"], *table["optional-dependencies"].values()]
    return sorted(
        {r for group in groups for r in group if not r.startswith(OWN)}
        | set(project["build-system"]["requires"])
    )


def install(shared: Path, requirements: list[str]) -> None:
    print(f"Python packages -> {shared} (about 6 GB, a few minutes, once)", flush=True)
    shutil.rmtree(shared, ignore_errors=True)
    run(PYTHON, "-m", "venv", str(shared))
    # DS_BUILD_OPS=0: no op is compiled. editables: hatchling needs it in `link`.
    run(
        str(shared / "bin/python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--progress-bar",
        "on",
        "--no-warn-script-location",
        "editables",
        *requirements,
        env={**os.environ, "DS_BUILD_OPS": "0"},
    )
    (shared / ".complete").touch()


def link(shared: Path) -> None:
    """Build or mend .venv; cheap when nothing changed."""
    venv_dir, stamp = TREE / ".venv", TREE / ".venv" / ".made-from"
    made_from = (
        f"{shared}\n{TREE}\n{hashlib.sha256((TREE / 'pyproject.toml').read_bytes()).hexdigest()}"
    )
    if stamp.exists() and stamp.read_text() == made_from:
        return
    shutil.rmtree(venv_dir, ignore_errors=True)
    run(PYTHON, "-m", "venv", str(venv_dir))
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = venv_dir / "lib" / minor / "site-packages"
    (site / "_dependencies.pth").write_text(f"{shared / 'lib' / minor / 'site-packages'}\n")
    run(
        str(venv_dir / "bin/python"),
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-e",
        str(TREE),
    )
    for tool in ("ruff", "ninja"):
        source, target = shared / "bin" / tool, venv_dir / "bin" / tool
        if source.exists() and not target.exists():
            target.symlink_to(source)
    stamp.write_text(made_from)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=env, check=False)
    if done.returncode:
        sys.exit(
            fail(f"failed ({done.returncode}): {' '.join(command)}; run the target again to go on")
        )


class Lock:
    """Two clones setting up at once take turns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.file = self.path.open("w")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()


def fail(message: str) -> int:
    print(f"setup: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
