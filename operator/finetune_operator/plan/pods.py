"""The pods and the Service of a job, rendered as the dicts that the API server receives."""

from collections.abc import Iterable

from finetune_api import names
from finetune_api.base import API_VERSION, Object
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan import inputs, placement, run_config
from finetune_operator.plan.observe import Job
from finetune_operator.plan.template import merged_into

_HARDENED: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_COMMAND = ["python", "-m", "finetune_trainer"]
_PREPARE_REQUESTS = {"cpu": "1", "memory": "2Gi"}
_WORKER_REQUESTS = {"cpu": "500m", "memory": "2Gi"}
# The proxy of a service mesh would block the gang's traffic. A template can enable it again.
_NO_MESH = {"sidecar.istio.io/inject": "false", "linkerd.io/inject": "disabled"}


def service(job: Job) -> Object:
    """Render the headless Service, which gives workers DNS names before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": job.name,
            "namespace": job.namespace,
            "labels": _labels(job),
            "ownerReferences": [_owner(job)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB_UID: job.uid},
            "ports": [
                {"name": "rendezvous", "port": names.RENDEZVOUS_PORT},
                {"name": "report", "port": names.REPORT_PORT},
            ],
        },
    }


def prepare_pod(job: Job, image: str, inputs_digest: str) -> Object:
    """Render the pod that downloads and prepares the inputs; it requests no device.

    Only this pod gets the credentials of the inputs, because workers read the cache.
    """
    config = run_config.encode(run_config.for_prepare(job))
    pod = _pod(job, names.prepare_pod_name(job.name), image, "prepare", config)
    pod["metadata"]["labels"][names.LABEL_ROLE] = "prepare"
    pod["metadata"]["annotations"] |= {
        names.ANNOTATION_INPUTS: inputs_digest,
        names.ANNOTATION_TEMPLATE: template_digest(job),
        names.ANNOTATION_RETRY: str(tries_of_preparation(job.status)),
    }
    container = _own_container(pod["spec"])
    _add_secrets(container, inputs.credentials(job))
    resources = container.setdefault("resources", {})
    for part in ("limits", "requests"):
        resources.get(part, {}).pop(job.spec.workers.device_resource, None)
    resources["requests"] = _requests(_PREPARE_REQUESTS, resources)
    return pod


def worker_pods(job: Job, highest_step: int, indexes: Iterable[int]) -> list[Object]:
    """Render the pods of these workers, for the attempt that `job.status` committed."""
    config = run_config.for_workers(job, highest_step)
    # The same for all workers: the variable PET_NODE_RANK has the index.
    encoded, digest = run_config.encode(config), run_config.digest(config)
    return [_worker_pod(job, index, encoded, digest) for index in indexes]


def _worker_pod(job: Job, index: int, config: str, digest: str) -> Object:
    workers, attempt = job.spec.workers, job.status.attempt
    assert attempt is not None
    assert job.status.resolved is not None
    name = names.worker_pod_name(job.name, attempt, index)
    pod = _pod(job, name, job.status.resolved.image, "worker", config)
    pod["metadata"]["labels"] |= {
        names.LABEL_ROLE: "worker",
        names.LABEL_ATTEMPT: str(attempt),
        names.LABEL_WORKER_INDEX: str(index),
    }
    pod["metadata"]["annotations"][names.ANNOTATION_CONFIG] = digest
    pod["spec"] |= {"hostname": name, "subdomain": job.name}
    if job.spec.scheduling:
        pod["spec"]["priorityClassName"] = job.spec.scheduling.priority_class_name
    placement.avoid(pod["spec"], job.status.avoided_nodes)
    container = _own_container(pod["spec"])
    rendezvous = {
        "PET_NNODES": str(workers.replicas),
        "PET_NODE_RANK": str(index),
        "PET_NPROC_PER_NODE": str(workers.devices_per_worker),
        "PET_MASTER_ADDR": names.master_address(job.name, attempt, job.namespace),
        "PET_MASTER_PORT": str(names.RENDEZVOUS_PORT),
    }
    own = [{"name": name, "value": value} for name, value in rendezvous.items()]
    container["env"] = _merge_env(container["env"], own)
    tracked = [tracker.secret_ref for tracker in job.spec.tracking or []]
    _add_secrets(container, [ref.name for ref in tracked if ref])
    container["ports"] = [
        {"name": "rendezvous", "containerPort": names.RENDEZVOUS_PORT},
        {"name": "report", "containerPort": names.REPORT_PORT},
    ]
    resources = container.setdefault("resources", {})
    devices = {workers.device_resource: str(workers.devices_per_worker)}
    resources["requests"] = _requests(_WORKER_REQUESTS, resources) | devices
    resources["limits"] = resources.get("limits", {}) | devices
    return pod


def _requests(defaults: Object, resources: Object) -> Object:
    """Return the requests of the template, with defaults for resources that have no limit.

    Kubernetes uses a limit as the default request, and a default of ours could exceed it.
    """
    missing = {name: n for name, n in defaults.items() if name not in resources.get("limits", {})}
    requested: Object = resources.get("requests", {})
    return missing | requested


def _pod(job: Job, name: str, image: str, role: str, config: str) -> Object:
    """Render what both roles share: the user's template and the operator's fields over it."""
    template = merged_into(job.spec.workers.template)
    metadata, spec = template.get("metadata", {}), template.get("spec", {})
    spec |= {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.spec.run_policy.termination_grace_period_seconds,
    }
    spec.setdefault("automountServiceAccountToken", False)
    spec["securityContext"] = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "fsGroup": 65532,
        "fsGroupChangePolicy": "OnRootMismatch",
    } | spec.get("securityContext", {})
    _harden(spec)
    container = _own_container(spec)
    container["image"] = image
    container["command"] = _COMMAND
    container["securityContext"].setdefault("readOnlyRootFilesystem", True)
    _mount_scratch(spec, container)
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    pod_ip = {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    run = {"name": names.ENV_RUN, "value": config}
    container["env"] = _merge_env(container.get("env", []), [run, pod_ip])
    _mount_claims(job, spec, container, role)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": metadata.get("labels", {}) | _labels(job),
            "annotations": _NO_MESH | metadata.get("annotations", {}),
            "ownerReferences": [_owner(job)],
        },
        "spec": spec,
    }


def _harden(spec: Object) -> None:
    """Set what the restricted Pod Security level requires of every container, also sidecars."""
    for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        container["securityContext"] = _HARDENED | container.get("securityContext", {})


def _own_container(spec: Object) -> Object:
    containers = spec.setdefault("containers", [])
    found: Object | None = next((c for c in containers if c.get("name") == names.CONTAINER), None)
    if found is None:
        found = {"name": names.CONTAINER, "securityContext": dict(_HARDENED)}
        containers.insert(0, found)
    return found


def _merge_env(entries: list[Object], own: list[Object]) -> list[Object]:
    """Return the template's variables and the operator's, which replace those of the same name."""
    own_names = {entry["name"] for entry in own}
    return [entry for entry in entries if entry.get("name") not in own_names] + own


def _add_secrets(container: Object, secrets: list[str]) -> None:
    """Add each Secret to `envFrom` once, after the sources that the template names."""
    sources = list(container.get("envFrom", []))
    for name in dict.fromkeys(secrets):
        source = {"secretRef": {"name": name}}
        if source not in sources:
            sources.append(source)
    if sources:
        container["envFrom"] = sources


def _mount_claims(job: Job, spec: Object, container: Object, role: str) -> None:
    for number, (claim, read_only) in enumerate(inputs.claims(job).items()):
        volume = {"claimName": claim} | ({"readOnly": True} if read_only else {})
        mount = {"mountPath": f"{names.CLAIMS_PATH}/{claim}", "readOnly": read_only}
        _mount(spec, container, f"claim-{number}", {"persistentVolumeClaim": volume}, mount)
    if role == "worker" and not _mounts(container, "/dev/shm"):
        # NCCL fails with an obscure error in the 64 MB that container runtimes give by default.
        memory = {"emptyDir": {"medium": "Memory"}}
        _mount(spec, container, "shared-memory", memory, {"mountPath": "/dev/shm"})


def _mount_scratch(spec: Object, container: Object) -> None:
    """Mount a volume at /tmp for the caches of libraries: the root file system is read-only."""
    if not _mounts(container, "/tmp"):
        _mount(spec, container, "finetune-tmp", {"emptyDir": {}}, {"mountPath": "/tmp"})


def _mounts(container: Object, path: str) -> bool:
    return any(mount.get("mountPath") == path for mount in container.get("volumeMounts", []))


def _mount(spec: Object, container: Object, name: str, volume: Object, mount: Object) -> None:
    spec.setdefault("volumes", []).append({"name": name} | volume)
    container.setdefault("volumeMounts", []).append({"name": name} | mount)


def _labels(job: Job) -> dict[str, str]:
    return {names.LABEL_JOB_NAME: job.name, names.LABEL_JOB_UID: job.uid}


def _owner(job: Job) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": names.KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
        # Where owner references require rights on finalizers (OpenShift), True is refused.
        "blockOwnerDeletion": False,
    }


def tries_of_preparation(status: FineTuneJobStatus) -> int:
    """Return how many prepare pods have ended, so that the end of each is counted once."""
    return status.prepare_failures + status.prepare_interruptions


def template_digest(job: Job) -> str:
    """Return a digest of the fields that determine where a pod may run, and with what.

    A change of these replaces only a pod that does not run yet.
    """
    scheduling = job.spec.scheduling
    return inputs.digest(job.spec.workers.template, scheduling and scheduling.to_dict())
