"""What a container sees at its mount paths, as bind mounts of local files."""

import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune_local.node.api import Api, ApiError
from finetune_local.node.environment import Lookup, UnresolvedError, field

Object = dict[str, Any]


@dataclass(frozen=True)
class Mount:
    """A local file or folder at a path of the container."""

    target: str
    source: str
    read_only: bool

    def to_dict(self) -> Object:
        """For the sandbox's configuration."""
        return asdict(self)


@dataclass(frozen=True)
class Volume:
    """A volume of a pod on this node."""

    path: Path
    read_only: bool = False


class Volumes:
    """Makes and removes the volumes of one pod below its own folder."""

    def __init__(self, api: Api, folder: Path, lookup: Lookup) -> None:
        self._api, self._folder, self._lookup = api, folder / "volumes", lookup

    async def make(self, pod: Object) -> dict[str, Volume]:
        """All volumes by name; UnresolvedError names the one that is not ready."""
        return {v["name"]: await self._one(pod, v) for v in pod["spec"].get("volumes", [])}

    async def _one(self, pod: Object, volume: Object) -> Volume:
        if "persistentVolumeClaim" in volume:
            return await self._claim(pod, volume["persistentVolumeClaim"])
        if "hostPath" in volume:
            return Volume(_host_path(volume["hostPath"]))
        folder = self._folder / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if "emptyDir" in volume:
            if volume["emptyDir"].get("medium") == "Memory" and not folder.is_mount():
                _system("mount", "-t", "tmpfs", "tmpfs", str(folder))
            return Volume(folder)
        for path, text in (await self._files(pod, volume)).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return Volume(folder, read_only=True)

    async def _files(self, pod: Object, volume: Object) -> dict[str, str]:
        sources = volume["projected"]["sources"] if "projected" in volume else [volume]
        files: dict[str, str] = {}
        for source in sources:
            files |= await self._source_files(pod, source)
        return files

    async def _source_files(self, pod: Object, source: Object) -> dict[str, str]:
        if "downwardAPI" in source:
            items = source["downwardAPI"].get("items", [])
            return {item["path"]: field(pod, item["fieldRef"]["fieldPath"]) for item in items}
        if "serviceAccountToken" in source:
            return {source["serviceAccountToken"]["path"]: await self._token(pod)}
        for key, kind in (("secret", "secret"), ("configMap", "configmap")):
            if key in source:
                name = source[key].get("secretName") or source[key].get("name")
                data = await self._lookup(kind, name)
                if data is None:
                    raise UnresolvedError(f'{kind} "{name}" not found')
                items = source[key].get("items")
                return {i["path"]: data[i["key"]] for i in items} if items else data
        kinds = sorted(set(source) - {"name"})
        raise UnresolvedError(f"volume of kind {kinds} is not offered by this node")

    async def _token(self, pod: Object) -> str:
        metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"]}
        body = {"spec": {"boundObjectRef": bound | {"uid": metadata["uid"]}}}
        base = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts"
        answer = await self._api.create(f"{base}/{account}/token", body)
        token: str = answer["status"]["token"]
        return token

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
        only_read = set(spec["accessModes"]) == {"ReadOnlyMany"}
        return Volume(path, only_read or bool(source.get("readOnly")))


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
            source.mkdir(parents=True, exist_ok=True)
        read_only = volume.read_only or bool(entry.get("readOnly"))
        result.append(Mount(entry["mountPath"], str(source), read_only))
    return sorted(result, key=lambda mount: mount.target)


def remove(folder: Path) -> None:
    """Delete what a pod left in its own folder; claims lie elsewhere."""
    for volume in (folder / "volumes").glob("*"):
        if volume.is_mount():
            _system("umount", "--lazy", str(volume))
    shutil.rmtree(folder, ignore_errors=True)


def _system(*command: str) -> None:
    """The agent has a mount namespace of its own: what it mounts ends with it."""
    subprocess.run(command, check=True, capture_output=True)
