"""Provisions claims of the storage class `local` with folders that are deleted with the claim."""

import asyncio
import logging
import shutil
from pathlib import Path

from finetune_api.base import Object
from finetune_client.api import Api
from finetune_client.errors import TRANSIENT, ApiError

PROVISIONER = "finetune.dev/local"
_log = logging.getLogger(__name__)


async def run(api: Api, folder: Path) -> None:
    """Check all claims every second and create or delete their volumes in `folder`.

    There are few claims, so they are polled. The controller manager binds them.
    """
    while True:
        try:
            claims = await api.get("/api/v1/persistentvolumeclaims")
            for claim in claims["items"]:
                if _is_local(claim) and not claim["spec"].get("volumeName"):
                    await _provision(api, claim, folder)
            volumes = await api.get("/api/v1/persistentvolumes")
            for volume in volumes["items"]:
                if _is_released(volume):
                    await _reclaim(api, volume)
        except (ApiError, *TRANSIENT) as error:
            _log.warning("provisioner: %s", error)
        await asyncio.sleep(1)


def _is_local(claim: Object) -> bool:
    return bool(claim["spec"].get("storageClassName") == "local")


def _is_released(volume: Object) -> bool:
    annotations = volume["metadata"].get("annotations", {})
    ours = annotations.get("pv.kubernetes.io/provisioned-by") == PROVISIONER
    return bool(ours and volume["status"].get("phase") == "Released")


async def _provision(api: Api, claim: Object, folder: Path) -> None:
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"pvc-{metadata['uid']}"
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    body = {
        "metadata": {
            "name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": "local",
            "hostPath": {"path": str(path)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }
    try:
        await api.create("/api/v1/persistentvolumes", body)
    except ApiError as error:
        if error.code != 409:
            raise


async def _reclaim(api: Api, volume: Object) -> None:
    shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
    await api.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
