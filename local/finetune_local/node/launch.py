"""Computes what a container is started with from the pod's specification."""

from pathlib import Path

from finetune_api.base import Object
from finetune_local.node import images, volumes
from finetune_local.node.container import Launch
from finetune_local.node.environment import Lookup, environment, expand
from finetune_local.node.images import Image
from finetune_local.node.volumes import Volume


async def make_launch(
    pod: Object,
    spec: Object,
    *,
    image: Image,
    pod_volumes: dict[str, Volume],
    lookup: Lookup,
    hosts: Path,
) -> Launch:
    """Return the launch of one container; the pod has an address. Raises UnresolvedError."""
    metadata, security = pod["metadata"], spec.get("securityContext", {})
    user, group = images.identity(pod, spec, image)
    env = await environment(pod, spec, lookup)
    hook = spec.get("lifecycle", {}).get("preStop", {}).get("exec", {})
    arguments = [*spec["command"], *spec.get("args", [])]
    return Launch(
        command=[expand(argument, env) for argument in arguments],
        pre_stop=hook.get("command", []),
        env={"HOSTNAME": metadata["name"]} | image.env | env,
        cwd=spec.get("workingDir", "/"),
        user=user,
        group=group,
        hostname=pod["spec"].get("hostname", metadata["name"])[:63],
        hosts=str(hosts),
        mounts=volumes.mounts(spec, pod_volumes),
        read_only_root=bool(security.get("readOnlyRootFilesystem")),
        termination_path=spec.get("terminationMessagePath", "/dev/termination-log"),
        fall_back_to_logs=spec.get("terminationMessagePolicy") == "FallbackToLogsOnError",
    )
