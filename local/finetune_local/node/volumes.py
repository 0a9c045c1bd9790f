"""Provides the volumes of a pod as local folders, and the bind mounts of its containers."""

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import ApiError
from finetune_local.node import fs_group, volume_files
from finetune_local.node.environment import Lookup, UnresolvedError
from finetune_local.node.volume_files import VolumeFiles


@dataclass(frozen=True)
class Mount:
    """A bind mount of a local file or folder at a path of the container."""

    target: str
    source: str
    read_only: bool


@dataclass(frozen=True)
class Volume:
    """The local file or folder of a pod's volume."""

    path: Path
    read_only: bool = False


class Volumes:
    """Creates the volumes of one pod, in the pod's folder unless they exist elsewhere."""

    def __init__(self, api: Api, folder: Path, lookup: Lookup) -> None:
        self._api, self._folder = api, folder / "volumes"
        self._files = VolumeFiles(api, lookup)

    async def make(self, pod: Object) -> dict[str, Volume]:
        """Create all volumes and return them by name; UnresolvedError names one that is missing."""
        return {v["name"]: await self._make_one(pod, v) for v in pod["spec"].get("volumes", [])}

    async def _make_one(self, pod: Object, volume: Object) -> Volume:
        kinds = set(volume) - {"name"}
        if "persistentVolumeClaim" in volume:
            return await self._claim(pod, volume["persistentVolumeClaim"])
        if "hostPath" in volume:
            return Volume(_host_path(volume["hostPath"]))
        if not kinds <= {"emptyDir", "projected", "secret", "configMap", "downwardAPI"}:
            raise UnresolvedError(f"volume of kind {sorted(kinds)} is not offered by this node")
        folder = self._folder / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            if volume["emptyDir"].get("medium") == "Memory" and not folder.is_mount():
                _system("mount", "-t", "tmpfs", "tmpfs", str(folder))
            folder.chmod(0o777)
            return Volume(folder)
        volume_files.write(folder, await self._files.read(pod, volume))
        return Volume(folder, read_only=True)

    async def _claim(self, pod: Object, source: Object) -> Volume:
        namespace, name = pod["metadata"]["namespace"], source["claimName"]
        try:
            claim = await self._api.get(
                f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
            )
            if claim["status"].get("phase") != "Bound":
                raise UnresolvedError(f'persistentvolumeclaim "{name}" is not bound')
            volume = await self._api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        except ApiError as error:
            raise UnresolvedError(f'persistentvolumeclaim "{name}": {error}') from error
        spec = volume["spec"]
        local = spec.get("hostPath") or spec.get("local")
        if local is None:
            raise UnresolvedError(f'the volume of claim "{name}" is neither hostPath nor local')
        path = Path(local["path"])
        if not path.is_dir():
            raise UnresolvedError(f'claim "{name}": {path} does not exist on this machine')
        read_only = set(spec["accessModes"]) == {"ReadOnlyMany"} or bool(source.get("readOnly"))
        if not read_only and _uses_fs_group(volume):
            fs_group.give_to_group(path, pod["spec"].get("securityContext", {}))
        return Volume(path, read_only)


def _uses_fs_group(volume: Object) -> bool:
    """Return whether fsGroup applies: not to a hostPath, which is a folder of the machine."""
    provisioned = "pv.kubernetes.io/provisioned-by" in volume["metadata"].get("annotations", {})
    return provisioned or "local" in volume["spec"]


def _host_path(source: Object) -> Path:
    path, kind = Path(source["path"]), source.get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        raise UnresolvedError(f"hostPath {path} does not exist")
    return path


def mounts(container: Object, volumes: dict[str, Volume]) -> list[Mount]:
    """Return the mounts of one container, outer paths first."""
    result = []
    for entry in container.get("volumeMounts", []):
        volume = volumes[entry["name"]]
        source = volume.path
        if entry.get("subPath"):
            source = volume.path / entry["subPath"]
            if ".." in Path(entry["subPath"]).parts:
                raise UnresolvedError(f"subPath {entry['subPath']!r} leaves its volume")
            if not source.exists():
                source.mkdir(parents=True)
        read_only = volume.read_only or bool(entry.get("readOnly"))
        result.append(Mount(entry["mountPath"], str(source), read_only))
    return sorted(result, key=lambda mount: mount.target)


def remove(folder: Path) -> None:
    """Delete the folder of a pod. Claims are stored elsewhere and stay."""
    for volume in (folder / "volumes").glob("*"):
        if volume.is_mount():
            with suppress(UnresolvedError):  # the mount ends with the cluster at the latest
                _system("umount", "--lazy", str(volume))
    shutil.rmtree(folder, ignore_errors=True)


def _system(*command: str) -> None:
    # The agent has its own mount namespace, so its mounts end with it.
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UnresolvedError(f"{' '.join(command)}: {done.stderr.strip()}")
