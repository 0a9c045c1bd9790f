"""The parts of the spec that describe the pods of the gang and their scheduling."""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from finetune_api.schema import Rule, opaque, rules
from finetune_api.spec.common import NAME_PATTERN, Spec

_TEXTS = {"type": "array", "maxItems": 64, "items": {"type": "string", "maxLength": 4096}}
_CONTAINER = opaque(
    name={"type": "string", "maxLength": 63},
    image={"type": "string", "maxLength": 512},
    command=_TEXTS,
    args=_TEXTS,
    restartPolicy={"type": "string", "maxLength": 64},
    restartPolicyRules={"type": "array", "maxItems": 20, "items": opaque()},
)
_SET_BY_OPERATOR = ("restartPolicy", "hostname", "subdomain", "terminationGracePeriodSeconds")
# Without the fields beside metadata and spec, which the API server then refuses by name.
TEMPLATE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "metadata": {
            "type": "object",
            "description": "metadata holds the labels and annotations of the pods.",
            "properties": {
                "labels": opaque() | {"description": "labels are added to the pods."},
                "annotations": opaque() | {"description": "annotations are added to the pods."},
            },
        },
        "spec": opaque(
            restartPolicy={"type": "string", "maxLength": 64},
            hostname={"type": "string", "maxLength": 64},
            subdomain={"type": "string", "maxLength": 64},
            terminationGracePeriodSeconds={"type": "integer"},
            containers={"type": "array", "maxItems": 16, "items": _CONTAINER},
        )
        | {"description": "spec is a PodSpec, of which only the fields that differ are needed."},
    },
} | rules(
    *(
        Rule(
            f"!has(self.spec) || !has(self.spec.{field})",
            f"template.spec.{field} is set by the operator; remove it",
            f".spec.{field}",
        )
        for field in _SET_BY_OPERATOR
    ),
    Rule(
        "!has(self.spec) || !has(self.spec.containers) || self.spec.containers.all(c, "
        "has(c.name) && (c.name != 'trainer' || !has(c.command) && !has(c.args)))",
        "every container needs a name, and the operator sets command and args of the container "
        "'trainer'; remove them",
        ".spec.containers",
    ),
)


def _of_trainer(condition: str, message: str) -> Rule:
    """Return the rule that the trainer's container, named c, meets a condition.

    The API server applies a new rule also to stored objects if they contain an open object, so this
    one holds only for a template that is new. The operator checks those that are edited.
    """
    return Rule(
        "oldSelf.hasValue() && has(oldSelf.value().template) || "
        "!has(self.template) || !has(self.template.spec) || !has(self.template.spec.containers) || "
        f"self.template.spec.containers.all(c, !has(c.name) || c.name != 'trainer' || {condition})",
        message,
        ".template.spec.containers",
        optional_old_self=True,
    )


IMAGE_RULE = _of_trainer(
    "!has(c.image)",
    "the image of the container 'trainer' is that of workers.image; remove it",
)
RESTART_RULE = _of_trainer(
    "!has(c.restartPolicy) && !has(c.restartPolicyRules)",
    "the container 'trainer' must not be restarted in place, because a gang restarts as a whole; "
    "remove restartPolicy and restartPolicyRules (init containers may have restartPolicy Always)",
)


class Workers(Spec):
    """The gang: the pods that start, train and restart together."""

    model_config = ConfigDict(json_schema_extra=rules(IMAGE_RULE, RESTART_RULE))

    replicas: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="replicas is the number of workers in the gang, 1 to 4096. Default: 1.",
    )
    devices_per_worker: int = Field(
        default=1,
        ge=1,
        le=64,
        description="devicesPerWorker is the number of devices, and of training processes, in each "
        "worker, 1 to 64. Default: 1.",
    )
    device_resource: str = Field(
        default="nvidia.com/gpu",
        min_length=3,
        max_length=253,
        description="deviceResource is the name of the extended resource of a device, 3 to 253 "
        "characters. Default: nvidia.com/gpu.",
        json_schema_extra=rules(
            Rule(
                "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$')",
                "must be the name of an extended resource, DOMAIN/NAME, for example nvidia.com/gpu",
            )
        ),
    )
    device_type: str | None = Field(
        default=None,
        min_length=1,
        max_length=63,
        description="deviceType is the name of the devices in the operator's catalogue, 1 to 63 "
        "characters, for example H100-SXM-80GB. The plan is made for their memory and speed. "
        "Default: the type whose node labels the template selects, or the only type with "
        "deviceResource; if there is none, the plan uses careful defaults.",
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="image is the trainer image, at most 512 characters. Default: the trainer "
        "image that the operator was installed with at the time of the first attempt; see "
        "status.resolved.image.",
        json_schema_extra=rules(
            Rule(
                "self.matches('^[!-~]+$')",
                "must be the reference of an image: ASCII characters without white space",
            )
        ),
    )
    template: dict[str, Any] | None = Field(
        default=None,
        description="template is a PodTemplateSpec that is merged into the workers: nodeSelector, "
        "tolerations, resources, volumes, sidecars, ... The container named trainer is the "
        "trainer's. A field that the operator sets itself is refused. The template has at most "
        "65536 bytes as JSON.",
        json_schema_extra=TEMPLATE_SCHEMA,
    )


class Prepare(Spec):
    """The pod that checks and prepares the inputs before a gang exists."""

    model_config = ConfigDict(json_schema_extra=rules(IMAGE_RULE, RESTART_RULE))

    template: dict[str, Any] | None = Field(
        default=None,
        description="template is a PodTemplateSpec that is merged into the prepare pod. From "
        "workers.template it takes pull secrets, the service account, tolerations, name "
        "resolution, security contexts, and the environment and volumes of the container trainer, "
        "but no resources, nodes, labels or sidecars. A field that is set here replaces what is "
        "taken, and null removes it. The template has at most 65536 bytes as JSON.",
        json_schema_extra=TEMPLATE_SCHEMA,
    )


class Scheduling(Spec):
    """How the workers are scheduled."""

    priority_class_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="priorityClassName is the name of the PriorityClass of the workers, at most "
        "253 characters. It decides which pods they may preempt and which pods may preempt them. "
        "Default: that of workers.template, or the default class of the cluster.",
        json_schema_extra=rules(
            Rule(
                f"self.matches('{NAME_PATTERN}')",
                "must be the name of a PriorityClass: a-z, 0-9, '-' and '.', beginning and ending "
                "with a letter or a digit",
            )
        ),
    )
    worker_anti_affinity: Literal["Preferred", "Required"] | None = Field(
        default=None,
        description="workerAntiAffinity selects whether two workers of a gang may share a node. "
        "Preferred places them on different nodes if it is possible, by a topology spread "
        "constraint; workers.template replaces it with its own topologySpreadConstraints, "
        "podAffinity or podAntiAffinity. Required never places two on one node, in addition to the "
        "affinity of the template. Default: Preferred.",
    )
