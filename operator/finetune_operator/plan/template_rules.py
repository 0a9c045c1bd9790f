"""What a pod template may not contain, because it would be replaced or would have no effect.

Where a rule of the CRD can see a field, it refuses it; the others are refused here, before anything
is created. Templates of jobs that have begun are not looked at again unless they may have changed,
so that a new version of the operator does not stop a job that runs.
"""

import json
from difflib import get_close_matches

from finetune_api import names
from finetune_api.base import Object
from finetune_operator.plan.observe import Job
from finetune_operator.plan.template import TemplateError, merged_into, trainer_of

MAX_BYTES = 65_536
_TRAINER = f"spec.containers[{names.CONTAINER}]"
_PREFIX = "finetune.dev/"
_SET_ON_TRAINER = (
    *("command", "args", "terminationMessagePath", "terminationMessagePolicy"),
    *("restartPolicy", "restartPolicyRules"),
)
_VARIABLES = (names.ENV_RUN, names.ENV_POD_IP)
_ALIKE = 0.8  # of a name, from which on it is taken for a misspelt one


def check(job: Job) -> None:
    """Raise TemplateError if a template of the job contains what would have no effect."""
    scheduling, prepare = job.spec.scheduling, job.spec.prepare
    spec = _checked(job.spec.workers.template, "workers.template", names.RANK_VARIABLES)
    own, given = spec.get("priorityClassName"), scheduling and scheduling.priority_class_name
    if own and given and own != given:
        raise TemplateError(
            f"workers.template.spec.priorityClassName is {own} and scheduling.priorityClassName "
            f"is {given}; remove one of them"
        )
    device, count = job.spec.workers.device_resource, job.spec.workers.devices_per_worker
    for part, wanted in _requested(spec, device).items():
        if str(wanted) != str(count):
            raise TemplateError(
                f"workers.template.{_TRAINER}.resources.{part}: {device} is {wanted}, and "
                f"workers.devicesPerWorker is {count}; remove it from the template"
            )
    spec = _checked(prepare.template if prepare else None, "prepare.template", ())
    if _requested(spec, device):
        raise TemplateError(
            f"prepare.template.{_TRAINER}.resources: the prepare pod requests no device; remove "
            f"{device}"
        )


def _requested(spec: Object, resource: str) -> Object:
    """Return how much of a resource the trainer's container requests, as limits and requests."""
    resources: Object = (trainer_of(spec) or {}).get("resources", {})
    return {part: found[resource] for part, found in resources.items() if resource in found}


def _checked(template: Object | None, path: str, variables: tuple[str, ...]) -> Object:
    """Return the pod's spec in a template, once all rules for both templates hold."""
    size = len(json.dumps(template or {}, separators=(",", ":")).encode())
    if size > MAX_BYTES:
        raise TemplateError(f"{path} has {size} bytes as JSON, at most {MAX_BYTES} are allowed")
    found = merged_into(template, path)
    for part in ("labels", "annotations"):  # `merged_into` has checked that these are objects
        entries = found.get("metadata", {}).get(part, {})
        own = next((key for key in entries if key.startswith(_PREFIX)), None)
        if own:
            raise TemplateError(f"{path}.metadata.{part}: {own} {_SET_BY_US}")
    spec: Object = found.get("spec", {})
    trainer = trainer_of(spec)
    if trainer is None:
        _check_names([str(c.get("name", "")) for c in spec.get("containers", [])], path)
        return spec
    where = f"{path}.{_TRAINER}"
    if "image" in trainer:
        raise TemplateError(f"{where}.image: the image is that of workers.image; remove it")
    for field in _SET_ON_TRAINER:
        if field in trainer:
            raise TemplateError(f"{where}.{field} {_SET_BY_US}")
    for entry in trainer.get("env", []):
        if entry.get("name") in (*_VARIABLES, *variables):
            raise TemplateError(f"{where}.env: {entry['name']} {_SET_BY_US}")
    return spec


_SET_BY_US = "is set by the operator; remove it"


def _check_names(containers: list[str], path: str) -> None:
    """Refuse a container that is probably meant to be the trainer's."""
    if alike := get_close_matches(names.CONTAINER, containers, 1, _ALIKE):
        raise TemplateError(
            f"{path} has no container named '{names.CONTAINER}', but one named '{alike[0]}', "
            f"which would be a sidecar: name it '{names.CONTAINER}', or give the sidecar a name "
            "that differs more"
        )
