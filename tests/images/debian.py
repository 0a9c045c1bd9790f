"""Creates the Debian base image with debootstrap, without Docker, and keeps it in the cache."""

import shutil
import subprocess
from pathlib import Path

from finetune_local.cache import cache_folder, made_once
from tests.tools.interpreter import RELEASE, mirror

# The settings of Debian's own slim images, which also apply to packages that are installed later.
_SLIM = """
path-exclude /usr/share/doc/*
path-exclude /usr/share/info/*
path-exclude /usr/share/man/*
path-exclude /usr/share/locale/*
"""
_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_DROPPED = ("usr/share/doc", "usr/share/info", "usr/share/man", "usr/share/locale")


def root_archive() -> Path:
    """Return a tar file of the root file system, which is created once within a minute."""
    return made_once(cache_folder() / f"debian-{RELEASE}-slim.tar", _make)


def _make(archive: Path) -> None:
    folder = archive.with_suffix(".root")
    shutil.rmtree(folder, ignore_errors=True)
    _run("debootstrap", "--variant=minbase", RELEASE, str(folder), mirror())
    for name in _DROPPED:
        shutil.rmtree(folder / name)
    for name in ("var/cache/apt/archives", "var/lib/apt/lists"):
        for file in (folder / name).glob("*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    (folder / "etc/dpkg/dpkg.cfg.d/slim").write_text(_SLIM)
    _install_authorities(folder)
    _run("tar", "--directory", str(folder), "--numeric-owner", "-cf", str(archive), ".")
    shutil.rmtree(folder)


def _install_authorities(root: Path) -> None:
    """Copy the additional certificate authorities of this machine, for example of a proxy."""
    own = sorted(_AUTHORITIES.glob("*.crt"))
    place = root / str(_AUTHORITIES).lstrip("/")
    place.mkdir(parents=True, exist_ok=True)
    for file in own:
        shutil.copy(file, place)
    if own:  # pip uses a separate list
        (root / "etc/pip.conf").write_text(f"[global]\ncert = {_BUNDLE}\n")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
