"""The gang: its pods, and how they are scheduled."""

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
        "every container needs a name, and command and args of the container 'trainer' are set "
        "by the operator; remove them",
        ".spec.containers",
    ),
)


class Workers(Spec):
    """The gang: pods that train and restart together. May change while Suspended."""

    replicas: int = Field(default=1, ge=1, le=4096, description="Pods, one per node, default 1.")
    devices_per_worker: int = Field(
        default=1, ge=1, le=64, description="Devices, and processes, per pod, default 1."
    )
    device_resource: str = Field(
        default="nvidia.com/gpu",
        min_length=3,
        max_length=253,
        description="Extended resource that a device is, default nvidia.com/gpu.",
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
        description="Trainer image. Absent: the one the operator was installed with; it is frozen "
        "in status.resolved with the first attempt.",
    )
    template: dict[str, Any] | None = Field(
        default=None,
        description="PodTemplateSpec merged under the operator's own fields: nodeSelector, "
        "tolerations, resources, volumes, sidecars, ... The trainer container is the one named "
        "'trainer'.",
        json_schema_extra=TEMPLATE_SCHEMA,
    )


class Scheduling(Spec):
    """How the pods of the gang are scheduled."""

    priority_class_name: str = Field(
        min_length=1,
        max_length=253,
        description="PriorityClass of the workers: what they may preempt, and what preempts them.",
    )
