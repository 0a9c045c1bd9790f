"""Where the scheduler may place the pods of a job, beyond what the user's template says."""

from collections.abc import Sequence

from finetune_api.base import Object
from finetune_api.status import AvoidedNode

REQUIRED_FROM = 2
"""Faults of one node from which on it is excluded: one fault can be chance."""
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_WEIGHT = 100


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
