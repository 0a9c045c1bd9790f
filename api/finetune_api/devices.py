"""The catalogue of device types: what the planner must know of a device before it holds one."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from finetune_api.base import Count, Message

DeviceName = Annotated[str, Field(min_length=1, max_length=63)]


class DeviceType(Message):
    """One kind of device, as its data sheet describes it."""

    resource: str = Field(
        max_length=253, description="Name of the extended resource of these devices."
    )
    memory_bytes: Count = Field(gt=0, description="Memory that a program can allocate.")
    peak_flops: float = Field(gt=0, description="Dense bf16 FLOP/s, without sparsity.")
    link_bytes_per_second: float = Field(
        default=25e9,
        gt=0,
        description="What a device sends to the others of its node in a second, in one direction.",
    )
    node_labels: dict[str, list[str]] = Field(
        default_factory=dict,
        description="Labels of nodes with such devices, each with its possible values.",
    )

    def has_labels(self, labels: Mapping[str, object]) -> bool:
        """Return whether these labels of nodes say that they have such devices."""
        return any(labels.get(name) in values for name, values in self.node_labels.items())


Catalogue = Mapping[str, DeviceType]
"""Device types by their names."""
