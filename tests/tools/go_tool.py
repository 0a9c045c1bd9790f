"""Programs that tests start and that Go builds, once and at a fixed version, into the cache."""

import os
from dataclasses import dataclass
from pathlib import Path

from finetune_local import build
from finetune_local.cache import cache_folder, made_once
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

    def find(self) -> Path | None:
        """Return the path of the program, or None if it is not built yet."""
        program = self._folder / self.name
        return program if program.exists() else None

    def build(self) -> Path:
        """Return the path of the program, building it if needed. Raises BuildError."""
        return made_once(self._folder, self._install) / self.name

    @property
    def _folder(self) -> Path:
        return cache_folder() / f"{self.name}-{self.version}"

    def _install(self, folder: Path) -> None:
        if refused := no_room(build.go_needs(modules=GB, objects=2 * GB)):
            raise build.BuildError(refused)
        folder.mkdir()
        environment = os.environ | {
            "GOTOOLCHAIN": "local",
            "CGO_ENABLED": "0",
            "GOFLAGS": "",
            "GOBIN": str(folder),
        }
        print(f"{self.name} {self.version}: building from Go modules (2 minutes, once)", flush=True)
        command = [build.toolchain(), "install", "-trimpath", "-ldflags", "-s -w"]
        build.follow([*command, f"{self.package}@{self.version}"], environment, folder / "log")


# An S3 server that stores objects in a folder. Apache-2.0.
VERSITYGW = GoTool("github.com/versity/versitygw/cmd/versitygw", "v1.8.0")
# Installs, upgrades and removes the chart, as an administrator does. Apache-2.0.
HELM = GoTool("helm.sh/helm/v4/cmd/helm", "v4.3.1")
