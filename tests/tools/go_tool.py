"""Programs that tests start and that Go builds, once and at a fixed version, into the cache."""

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from finetune_local import build
from finetune_local.cache import cache_folder
from finetune_local.machine import GB, no_room


@dataclass(frozen=True)
class GoTool:
    """A main package at a version. The program is named after the last part of the package."""

    package: str
    version: str

    @property
    def name(self) -> str:
        """Name of the program."""
        return self.package.rsplit("/", 1)[-1]


# An S3 server that stores objects in a folder. Apache-2.0.
VERSITYGW = GoTool("github.com/versity/versitygw/cmd/versitygw", "v1.8.0")
# Installs, upgrades and removes the chart, as an administrator does. Apache-2.0.
HELM = GoTool("helm.sh/helm/v4/cmd/helm", "v4.3.1")


def program(tool: GoTool) -> Path:
    """Return the path of the program, building it if needed.

    Raises BuildError if it cannot be built. Concurrent callers build it only once.
    """
    folder = cache_folder() / f"{tool.name}-{tool.version}"
    with (cache_folder() / f"{tool.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / tool.name).exists():
            if refused := no_room(build.go_needs(modules=GB, objects=2 * GB)):
                raise build.BuildError(refused)
            _install(tool, folder)
    return folder / tool.name


def _install(tool: GoTool, folder: Path) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    environment = os.environ | {
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
        "GOFLAGS": "",
        "GOBIN": str(partial),
    }
    print(f"{tool.name} {tool.version}: building from Go modules (2 minutes, once)", flush=True)
    command = [build.toolchain(), "install", "-trimpath", "-ldflags", "-s -w"]
    build.follow([*command, f"{tool.package}@{tool.version}"], environment, partial / "log")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    for tool in (VERSITYGW, HELM):
        program(tool)
