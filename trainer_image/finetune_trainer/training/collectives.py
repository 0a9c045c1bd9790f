"""Finds the cause of an error of torch.distributed (pure).

gloo and NCCL raise RuntimeError or DistBackendError for everything, so the text decides.
"""

import torch.distributed as dist

_LOST = ("connection", "timed out", "broken pipe", "socket", "peer", "nccl", "gloo")
# NCCL's names of errors on this node: CUDA, driver, memory, network interfaces, visible devices.
_LOCAL = ("ncclsystemerror", "ncclunhandledcudaerror", "ncclinvalidusage", "ncclinvalidargument")
# The loss of a peer may also be reported as a system error, of the socket that led to it.
_REMOTE = ("ncclremoteerror", "timed out", "timeout", "connect", "broken pipe", "closed by")
_LAST = "Last error:"


def lost_a_peer(error: BaseException) -> bool:
    """Return whether the error shows that another rank is gone or cannot be reached."""
    if not isinstance(error, RuntimeError) or local_problem(error) is not None:
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(part in text for part in _LOST)


def local_problem(error: BaseException) -> str | None:
    """Return NCCL's explanation if it does not work on this node, independently of the peers.

    This is the first line of its message, and the line after "Last error:", which names what
    failed. Returns None for all other errors.
    """
    text = str(error).strip()
    low = text.lower()
    if not isinstance(error, RuntimeError) or not any(name in low for name in _LOCAL):
        return None
    if any(name in low for name in _REMOTE):
        return None
    first, last = text.splitlines()[0], text.partition(_LAST)[2].strip().splitlines()[:1]
    return "; ".join([first, *last])
