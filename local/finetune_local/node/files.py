"""The files of Secret, ConfigMap, downwardAPI, token and projected volumes."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.base import Object
from finetune_local.node.api import Api
from finetune_local.node.environment import Lookup, UnresolvedError, field

_MODE = 0o644  # of the kubelet


@dataclass(frozen=True)
class File:
    """One file of a volume."""

    content: bytes
    mode: int


class Files:
    """Reads what the API server holds for a volume."""

    def __init__(self, api: Api, lookup: Lookup) -> None:
        self._api, self._lookup = api, lookup

    async def of(self, pod: Object, volume: Object) -> dict[str, File]:
        """Path in the volume -> file; UnresolvedError names what is not there."""
        kind = next(k for k in ("projected", "secret", "configMap", "downwardAPI") if k in volume)
        mode = volume[kind].get("defaultMode", _MODE)
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
        answer = await self._api.create(f"{base}/{account}/token", {"spec": spec})
        token: str = answer["status"]["token"]
        return token


def _field(pod: Object, item: Object) -> str:
    if "fieldRef" not in item:
        raise UnresolvedError(f"{item['path']}: resourceFieldRef is not offered by this node")
    return field(pod, item["fieldRef"]["fieldPath"])


def write(folder: Path, files: dict[str, File]) -> None:
    """Put the files there; a second time changes nothing."""
    for path, file in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.write_bytes(file.content)
        place.chmod(file.mode)
