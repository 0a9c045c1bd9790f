"""The files of Secret, ConfigMap, downward API, token and projected volumes."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_local.node.environment import Lookup, UnresolvedError, field

_DEFAULT_MODE = 0o644  # as in the kubelet


@dataclass(frozen=True)
class File:
    """One file of a volume."""

    content: bytes
    mode: int


class VolumeFiles:
    """Reads the contents of volumes from the API server."""

    def __init__(self, api: Api, lookup: Lookup) -> None:
        self._api, self._lookup = api, lookup

    async def read(self, pod: Object, volume: Object) -> dict[str, File]:
        """Return the files of a volume by path; UnresolvedError names what does not exist."""
        kind = next(k for k in ("projected", "secret", "configMap", "downwardAPI") if k in volume)
        mode = volume[kind].get("defaultMode", _DEFAULT_MODE)
        files: dict[str, File] = {}
        for source in volume[kind]["sources"] if kind == "projected" else [volume]:
            files |= await self._source(pod, source, mode)
        return files

    async def _source(self, pod: Object, source: Object, mode: int) -> dict[str, File]:
        if "downwardAPI" in source:
            items = source["downwardAPI"].get("items", [])
            return {i["path"]: File(_field(pod, i).encode(), i.get("mode") or mode) for i in items}
        if "serviceAccountToken" in source:
            token = await self._token(pod, source["serviceAccountToken"])
            return {source["serviceAccountToken"]["path"]: File(token.encode(), mode)}
        if "secret" in source:
            return await self._keys("secret", source["secret"], mode)
        if "configMap" in source:
            return await self._keys("configmap", source["configMap"], mode)
        raise UnresolvedError(f"volume source {sorted(source)} is not offered by this node")

    async def _keys(self, kind: str, source: Object, mode: int) -> dict[str, File]:
        name = source.get("secretName") or source.get("name")
        data = await self._lookup(kind, str(name))
        optional = source.get("optional", False)
        if data is None and not optional:
            raise UnresolvedError(f'{kind} "{name}" not found')
        data = data or {}
        items = source.get("items") or [{"key": key, "path": key} for key in data]
        files = {}
        for item in items:
            if item["key"] in data:
                files[item["path"]] = File(data[item["key"]], item.get("mode") or mode)
            elif not optional:
                raise UnresolvedError(f"{kind} {name} references non-existent key: {item['key']}")
        return files

    async def _token(self, pod: Object, source: Object) -> str:
        metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"]}
        spec: Object = {"boundObjectRef": bound | {"uid": metadata["uid"]}}
        if source.get("audience"):
            spec["audiences"] = [source["audience"]]
        base = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts"
        created = await self._api.post(f"{base}/{account}/token", {"spec": spec})
        token: str = created["status"]["token"]
        return token


def _field(pod: Object, item: Object) -> str:
    if "fieldRef" not in item:
        raise UnresolvedError(f"{item['path']}: resourceFieldRef is not offered by this node")
    return field(pod, item["fieldRef"]["fieldPath"])


def write(folder: Path, files: dict[str, File]) -> None:
    """Write the files below a folder, replacing existing ones."""
    for path, file in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(file.content)
        target.chmod(file.mode)
