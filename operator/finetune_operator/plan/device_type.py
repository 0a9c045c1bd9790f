"""Which device type of the catalogue a job gets, as far as it can be known beforehand.

The operator has no right to read nodes. But a template that selects nodes by a label that the
catalogue lists says as much, because its pods run on no other nodes.
"""

from typing import Any

from finetune_api import reasons
from finetune_api.base import Object
from finetune_api.devices import Catalogue
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.plan.template import UnrenderableError, merged_into

_SELECTING = "requiredDuringSchedulingIgnoredDuringExecution"


class UnknownDeviceTypeError(UnrenderableError):
    """workers.deviceType is not in the catalogue."""

    reason = reasons.UNKNOWN_DEVICE_TYPE


def name_of(spec: FineTuneJobSpec, catalogue: Catalogue) -> str | None:
    """Return the name of the device type, or None if it is not known.

    It is workers.deviceType, or the only type of the catalogue whose labels the template selects,
    or the only type with the job's resource. Raises UnknownDeviceTypeError.
    """
    workers = spec.workers
    if workers.device_type is not None:
        return _named(workers.device_type, workers.device_resource, catalogue)
    possible = {n: t for n, t in catalogue.items() if t.resource == workers.device_resource}
    labels = _selected_labels(workers.template)
    by_label = [name for name, kind in possible.items() if kind.has_labels(labels)]
    for found in (by_label, list(possible)):
        if len(found) == 1:
            return found[0]
    return None


def _named(name: str, resource: str, catalogue: Catalogue) -> str:
    if name not in catalogue:
        known = ", ".join(sorted(catalogue)) or "none; the catalogue is empty"
        raise UnknownDeviceTypeError(
            f"workers.deviceType {name} is not in the operator's catalogue; known are: {known}"
        )
    if catalogue[name].resource != resource:
        raise UnknownDeviceTypeError(
            f"workers.deviceType {name} has the resource {catalogue[name].resource}, but "
            f"workers.deviceResource is {resource}; change one of them"
        )
    return name


def _selected_labels(template: Object | None) -> dict[str, Any]:
    """Return the labels that all nodes of the pods have.

    The API server checks the template only afterwards, so it may contain anything.
    """
    spec = merged_into(template, "workers.template").get("spec", {})
    selector = spec.get("nodeSelector")
    labels = dict(selector) if isinstance(selector, dict) else {}
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get(_SELECTING, {}).get("nodeSelectorTerms", [])
    if len(terms) == 1:  # with several, a node needs only one of them
        for rule in terms[0].get("matchExpressions", []):
            values = rule.get("values")
            if rule.get("operator") == "In" and isinstance(values, list) and len(values) == 1:
                labels[str(rule.get("key"))] = values[0]
    return labels
