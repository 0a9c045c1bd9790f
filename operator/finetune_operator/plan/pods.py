"""The pods and the Service of a job, rendered as the dicts that the API server receives."""

from collections.abc import Iterable

from finetune_api import names
from finetune_api.base import API_VERSION, Object
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan import (
    containers,
    images,
    inputs,
    placement,
    prepare_template,
    requests,
    run_config,
)
from finetune_operator.plan.decision import Check
from finetune_operator.plan.observe import Job
from finetune_operator.plan.template import TemplateError, merged_into

_COMMAND = ["python", "-m", "finetune_trainer"]
_PORTS = {"rendezvous": names.RENDEZVOUS_PORT, "report": names.REPORT_PORT}
_ANNOTATIONS = {
    "kubectl.kubernetes.io/default-container": names.CONTAINER,
    # The proxy of a service mesh would block the gang's traffic. A template can enable it again.
    "sidecar.istio.io/inject": "false",
    "linkerd.io/inject": "disabled",
}


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
            "ports": [{"name": name, "port": port} for name, port in _PORTS.items()],
        },
    }


def prepare_pod(job: Job, image: str, inputs_digest: str) -> Object:
    """Render the pod that downloads and prepares the inputs; it requests no device.

    Only this pod gets the credentials of the inputs, because workers read the cache.
    """
    name, template = names.prepare_pod_name(job.name), prepare_template.of(job)
    config = run_config.encode(run_config.for_prepare(job), template)
    pod = _pod(job, name, image, template, config)
    pod["metadata"]["labels"][names.LABEL_ROLE] = "prepare"
    pod["metadata"]["annotations"] |= {
        names.ANNOTATION_INPUTS: inputs_digest,
        names.ANNOTATION_TEMPLATE: template_digest(job),
        names.ANNOTATION_RETRY: str(tries_of_preparation(job.status)),
    }
    container = containers.trainer(pod["spec"])
    containers.add_secrets(container, inputs.credentials(job))
    resources = container.setdefault("resources", {})
    resources["requests"] = requests.merged(requests.PREPARE, resources)
    return pod


def worker_pods(job: Job, highest_step: int, indexes: Iterable[int]) -> list[Object]:
    """Render the pods of these workers, for the attempt that `job.status` committed."""
    config = run_config.for_workers(job, highest_step)
    template = merged_into(job.spec.workers.template, "workers.template")
    # The same for all workers: the variable PET_NODE_RANK has the index.
    encoded, digest = run_config.encode(config, template), run_config.digest(config)
    return [_worker_pod(job, index, encoded, digest) for index in indexes]


def check_of_gang(job: Job, first: Object) -> Check:
    """Return what must hold before any pod of an attempt is created; `first` is one of them.

    A pod of an earlier job can keep its name for minutes, during which the others of a gang would
    hold their devices.
    """
    attempt = job.status.attempts[-1]
    indexes = range(attempt.workers)
    taken = tuple(names.worker_pod_name(job.name, attempt.number, index) for index in indexes)
    return Check(pod=first, gang=attempt.workers, names=taken)


def _worker_pod(job: Job, index: int, config: str, digest: str) -> Object:
    workers, attempt = job.spec.workers, job.status.attempt
    assert attempt is not None
    assert job.status.resolved is not None
    name = names.worker_pod_name(job.name, attempt, index)
    template = merged_into(workers.template, "workers.template")
    pod = _pod(job, name, images.pullable(job.status.resolved.image), template, config)
    pod["metadata"]["labels"] |= {
        names.LABEL_ROLE: "worker",
        names.LABEL_ATTEMPT: str(attempt),
        names.LABEL_WORKER_INDEX: str(index),
    }
    pod["metadata"]["annotations"][names.ANNOTATION_CONFIG] = digest
    spec = pod["spec"] | {"hostname": name, "subdomain": job.name}
    placement.place(spec, job)
    container = containers.trainer(spec)
    containers.mount_shared_memory(spec, container)
    container["env"] = containers.merge_env(container["env"], _rendezvous(job, attempt, index))
    tracked = [tracker.secret_ref for tracker in job.spec.tracking or []]
    containers.add_secrets(container, [ref.name for ref in tracked if ref])
    container["ports"] = containers.merge_ports(container.get("ports", []), _PORTS)
    resources = container.setdefault("resources", {})
    devices = {workers.device_resource: str(workers.devices_per_worker)}
    needed = requests.for_worker(job.spec, job.status)
    resources["requests"] = requests.merged(needed, resources) | devices
    resources["limits"] = resources.get("limits", {}) | devices
    return pod | {"spec": spec}


def _rendezvous(job: Job, attempt: int, index: int) -> list[Object]:
    values = (
        str(job.spec.workers.replicas),
        str(index),
        str(job.spec.workers.devices_per_worker),
        names.master_address(job.name, attempt, job.namespace),
        str(names.RENDEZVOUS_PORT),
    )
    known = zip(names.RANK_VARIABLES, values, strict=True)
    return [{"name": name, "value": value} for name, value in known]


def _pod(job: Job, name: str, image: str, template: Object, config: str) -> Object:
    """Render what both roles share: the user's template and the operator's fields over it."""
    metadata, spec = template.get("metadata", {}), template.get("spec", {})
    spec |= {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.spec.run_policy.termination_grace_period_seconds,
    }
    spec.setdefault("automountServiceAccountToken", False)
    # Variables for every Service of the namespace, which nothing here reads, can be too many.
    spec.setdefault("enableServiceLinks", False)
    if spec.get("hostNetwork"):
        # With the default policy the pod could not resolve the names of the gang.
        spec.setdefault("dnsPolicy", "ClusterFirstWithHostNet")
    container = containers.trainer(spec)
    containers.harden(spec)
    container["image"] = image
    container["command"] = _COMMAND
    containers.delay_stop(container)
    containers.mount_scratch(spec, container)
    container["terminationMessagePolicy"] = "FallbackToLogsOnError"
    pod_ip = {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    run = {"name": names.ENV_RUN, "value": config}
    container["env"] = containers.merge_env(container.get("env", []), [run, pod_ip])
    containers.mount_claims(spec, container, inputs.claims(job))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": metadata.get("labels", {}) | _labels(job),
            "annotations": _ANNOTATIONS | metadata.get("annotations", {}),
            "ownerReferences": [_owner(job)],
        },
        "spec": spec,
    }


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
    """Return a digest of what determines where the prepare pod may run, and with what.

    A change of it replaces only a pod that does not run yet. A template that cannot be rendered
    differs from all others.
    """
    try:
        return inputs.digest(prepare_template.of(job))
    except TemplateError:
        return ""
