"""Where the scheduler may place the pods of a job, beyond what the user's template says."""

from collections.abc import Sequence

from finetune_api import names
from finetune_api.base import Object
from finetune_api.status import AvoidedNode
from finetune_operator.plan.observe import Job

REQUIRED_FROM = 2
"""Faults of one node from which on it is excluded: one fault can be chance."""
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_WEIGHT = 100
_HOSTNAME = "kubernetes.io/hostname"


def place(spec: Object, job: Job) -> None:
    """Add to a worker's spec where it may run, relative to the gang and to faulty nodes."""
    scheduling, attempt = job.spec.scheduling, job.status.attempt
    if scheduling and scheduling.priority_class_name:
        spec["priorityClassName"] = scheduling.priority_class_name
    gang = {names.LABEL_JOB_UID: job.uid, names.LABEL_ATTEMPT: str(attempt)}
    if scheduling and scheduling.worker_anti_affinity == "Required":
        _separate(spec, gang)
    elif job.spec.workers.replicas > 1:
        _spread(spec, gang)
    avoid(spec, job.status.avoided_nodes)


def _spread(spec: Object, gang: dict[str, str]) -> None:
    """Prefer a node of its own for each worker, unless the template places workers itself."""
    affinity = spec.get("affinity", {})
    if "topologySpreadConstraints" in spec or {"podAffinity", "podAntiAffinity"} & set(affinity):
        return
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": _HOSTNAME,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": gang},
        }
    ]


def _separate(spec: Object, gang: dict[str, str]) -> None:
    """Require a node of its own for each worker, in addition to the template's affinity."""
    affinity = spec.setdefault("affinity", {}).setdefault("podAntiAffinity", {})
    term = {"topologyKey": _HOSTNAME, "labelSelector": {"matchLabels": gang}}
    affinity[_REQUIRED] = [*affinity.get(_REQUIRED, []), term]


def avoid(spec: Object, nodes: Sequence[AvoidedNode]) -> None:
    """Add to a pod's spec that it is placed on other nodes than these, if there are any.

    Nodes are matched by name, because the label kubernetes.io/hostname can have another value. The
    affinity of the template still applies.
    """
    excluded = [_is_not(node) for node in nodes if node.faults >= REQUIRED_FROM]
    unwanted = [_is_not(node) for node in nodes if node.faults < REQUIRED_FROM]
    if not excluded and not unwanted:
        return
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    if excluded:
        _exclude(affinity, excluded)
    if unwanted:
        terms = [{"weight": _WEIGHT, "preference": {"matchFields": [one]}} for one in unwanted]
        affinity[_PREFERRED] = [*affinity.get(_PREFERRED, []), *terms]


def _exclude(affinity: Object, excluded: list[Object]) -> None:
    """Add the requirements to every term of the node affinity: one term that matches is enough."""
    if _REQUIRED not in affinity:
        affinity[_REQUIRED] = {"nodeSelectorTerms": [{"matchFields": excluded}]}
        return
    for term in affinity[_REQUIRED].get("nodeSelectorTerms", []):
        if term.get("matchFields") or term.get("matchExpressions"):  # an empty term matches no node
            term["matchFields"] = [*term.get("matchFields", []), *excluded]


def _is_not(node: AvoidedNode) -> Object:
    # Kubernetes allows one value in a requirement of matchFields.
    return {"key": "metadata.name", "operator": "NotIn", "values": [node.name]}
