"""The parts of the spec that describe the pods of the gang and their scheduling."""

from typing import Any

from pydantic import Field

from finetune_api.schema import Rule, opaque, rules
from finetune_api.spec.common import Spec

TEMPLATE_SCHEMA: dict[str, Any] = opaque(
    metadata=opaque(),
    spec=opaque(
        restartPolicy={"type": "string", "maxLength": 64},
        hostname={"type": "string", "maxLength": 64},
        subdomain={"type": "string", "maxLength": 64},
        terminationGracePeriodSeconds={"type": "integer"},
        containers={
            "type": "array",
            "maxItems": 16,
            "items": opaque(
                name={"type": "string", "maxLength": 63},
                command={
                    "type": "array",
                    "maxItems": 64,
                    "items": {"type": "string", "maxLength": 4096},
                },
                args={
                    "type": "array",
                    "maxItems": 64,
                    "items": {"type": "string", "maxLength": 4096},
                },
            ),
        },
    ),
) | rules(
    *(
        Rule(
            f"!has(self.spec) || !has(self.spec.{field})",
            f"template.spec.{field} is set by the operator; remove it",
            f".spec.{field}",
        )
        for field in ("restartPolicy", "hostname", "subdomain", "terminationGracePeriodSeconds")
    ),
    Rule(
        "!has(self.spec) || !has(self.spec.containers) || self.spec.containers.all(c, "
        "has(c.name) && (c.name != 'trainer' || !has(c.command) && !has(c.args)))",
        "every container needs a name, and the operator sets command and args of the container "
        "'trainer'; remove them",
        ".spec.containers",
    ),
)


class Workers(Spec):
    """The gang: the pods that start, train and restart together."""

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
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="image is the trainer image, at most 512 characters. Default: the trainer "
        "image that the operator was installed with at the time of the first attempt; see "
        "status.resolved.image.",
    )
    template: dict[str, Any] | None = Field(
        default=None,
        description="template is a PodTemplateSpec that is merged into the prepare pod and the "
        "workers: nodeSelector, tolerations, resources, volumes, sidecars, ... Fields that the "
        "operator sets take precedence. The container named trainer is the trainer's.",
        json_schema_extra=TEMPLATE_SCHEMA,
    )


class Scheduling(Spec):
    """How the workers are scheduled."""

    priority_class_name: str = Field(
        min_length=1,
        max_length=253,
        description="priorityClassName is the name of the PriorityClass of the workers, at most "
        "253 characters. It decides which pods they may preempt and which pods may preempt them.",
    )
