"""The template of the prepare pod: what it takes from that of the workers, and its own.

The prepare pod needs no device, so it must not ask for the nodes of the workers, their resources or
a place in their gang. It reads the same inputs from the same image, hence it takes from the workers
what gives access to them. `prepare.template` has precedence.
"""

from finetune_api import names
from finetune_api.base import Object
from finetune_operator.plan.observe import Job
from finetune_operator.plan.template import merged_into, trainer_of

_FROM_POD = (
    *("imagePullSecrets", "serviceAccountName", "automountServiceAccountToken"),
    *("securityContext", "tolerations", "dnsConfig", "dnsPolicy", "hostAliases"),
)
_FROM_CONTAINER = ("imagePullPolicy", "securityContext", "env", "envFrom", "volumeMounts")
# Lists whose entries are identified by a field: an entry replaces the one with the same value.
_KEYS = {"volumes": "name", "env": "name", "volumeMounts": "mountPath"}


def of(job: Job) -> Object:
    """Return the template of the prepare pod; raise TemplateError if it is not one."""
    given = job.spec.prepare.template if job.spec.prepare else None
    own = merged_into(given, "prepare.template")
    spec: Object = own.get("spec", {})
    base = _inherited(merged_into(job.spec.workers.template, "workers.template"))
    inherited = base.pop("containers")[0]
    trainer = trainer_of(spec) or {}
    raw: Object = (given or {}).get("spec") or {}
    container = _over(_without(inherited, trainer_of(raw) or {}), trainer)
    others = [one for one in spec.get("containers", []) if one is not trainer]
    pod = _over(_without(base, raw), {k: v for k, v in spec.items() if k != "containers"})
    return own | {"spec": pod | {"containers": [container, *others]}}


def _inherited(template: Object) -> Object:
    spec: Object = template.get("spec", {})
    trainer = trainer_of(spec) or {}
    container = {field: trainer[field] for field in _FROM_CONTAINER if field in trainer}
    mounts, volumes = trainer.get("volumeMounts", []), spec.get("volumes", [])
    huge = {v.get("name") for v in volumes if _is_huge(v)}
    mounts = [mount for mount in mounts if mount.get("name") not in huge]
    mounted = {mount.get("name") for mount in mounts}
    pod = {field: spec[field] for field in _FROM_POD if field in spec}
    if "volumeMounts" in container:
        container["volumeMounts"] = mounts
        pod["volumes"] = [volume for volume in volumes if volume.get("name") in mounted]
    return pod | {"containers": [{"name": names.CONTAINER} | container]}


def _is_huge(volume: Object) -> bool:
    """Return whether a volume needs huge pages, which the prepare pod does not request."""
    empty = volume.get("emptyDir")
    return isinstance(empty, dict) and str(empty.get("medium", "")).startswith("HugePages")


def _without(inherited: Object, own: Object) -> Object:
    """Return what is inherited without the fields that the prepare pod's template sets to null."""
    return {k: v for k, v in inherited.items() if k not in own or own[k] is not None}


def _over(inherited: Object, own: Object) -> Object:
    """Return the fields of both. Those of `own` have precedence."""
    found = inherited | own
    for field, key in _KEYS.items():
        if field in inherited and field in own:
            given = {entry.get(key) for entry in own[field]}
            kept = [entry for entry in inherited[field] if entry.get(key) not in given]
            found[field] = [*kept, *own[field]]
    if "securityContext" in inherited and "securityContext" in own:
        found["securityContext"] = inherited["securityContext"] | own["securityContext"]
    return found
