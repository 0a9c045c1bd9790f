"""Whether this container was given GPUs, as far as can be told without torch."""

from pathlib import Path

CONTROL = Path("/dev/nvidiactl")  # NVIDIA's container runtime puts it beside every GPU


def are_given() -> bool:
    """At least one GPU of NVIDIA, whether or not the software here can use it."""
    return CONTROL.exists()
