"""What a container sees at its mount paths, as bind mounts of local files."""

import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node import files, ownership
from finetune_local.node.api import Api, ApiError
from finetune_local.node.environment import Lookup, UnresolvedError
from finetune_local.node.files import Files


@dataclass(frozen=True)
class Mount:
    """A local file or folder at a path of the container."""

    target: str
    source: str
    read_only: bool


@dataclass(frozen=True)
class Volume:
    """A volume of a pod on this node."""

    path: Path
    read_only: bool = False


class Volumes:
    """Makes and removes the volumes of one pod below its own folder."""

    def __init__(self, api: Api, folder: Path, lookup: Lookup) -> None:
        self._api, self._folder, self._files = api, folder / "volumes", Files(api, lookup)

    async def make(self, pod: Object) -> dict[str, Volume]:
        """All volumes by name; UnresolvedError names the one that is not ready."""
        return {v["name"]: await self._one(pod, v) for v in pod["spec"].get("volumes", [])}

    async def _one(self, pod: Object, volume: Object) -> Volume:
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
        files.write(folder, await self._files.of(pod, volume))
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
        place = spec.get("hostPath") or spec.get("local")
        if place is None:
            raise UnresolvedError(f'the volume of claim "{name}" is neither hostPath nor local')
        path = Path(place["path"])
        if not path.is_dir():
            raise UnresolvedError(f'claim "{name}": {path} does not exist on this machine')
        only_read = set(spec["accessModes"]) == {"ReadOnlyMany"} or bool(source.get("readOnly"))
        if not only_read and _has_ownership(volume):
            ownership.give_to_group(path, pod["spec"].get("securityContext", {}))
        return Volume(path, only_read)


def _has_ownership(volume: Object) -> bool:
    """Kinds of volumes whose files belong to the pod: not a folder of the machine."""
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
    """Mounts of one container, outer paths first."""
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
    """Delete what a pod left in its own folder; claims lie elsewhere."""
    for volume in (folder / "volumes").glob("*"):
        if volume.is_mount():
            with suppress(UnresolvedError):  # it ends with the cluster
                _system("umount", "--lazy", str(volume))
    shutil.rmtree(folder, ignore_errors=True)


def _system(*command: str) -> None:
    """The agent has a mount namespace of its own: what it mounts ends with it."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UnresolvedError(f"{' '.join(command)}: {done.stderr.strip()}")
