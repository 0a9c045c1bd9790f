"""What an error of torch.distributed says about its cause (pure).

gloo and NCCL raise RuntimeError (or DistBackendError) with no type of their own: the words decide.
"""

import torch.distributed as dist

_LOST = ("connection", "timed out", "broken pipe", "socket", "peer", "nccl", "gloo")
# NCCL's names for what is wrong here: CUDA, driver, memory, network interfaces, visible devices.
_LOCAL = ("ncclsystemerror", "ncclunhandledcudaerror", "ncclinvalidusage", "ncclinvalidargument")
# A peer that goes may show as a system error, too: of the socket that led to it.
_REMOTE = ("ncclremoteerror", "timed out", "timeout", "connect", "broken pipe", "closed by")
_LAST = "Last error:"


def lost_a_peer(error: BaseException) -> bool:
    """Whether another rank is gone, or cannot be reached."""
    if not isinstance(error, RuntimeError) or local_trouble(error) is not None:
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _LOST)


def local_trouble(error: BaseException) -> str | None:
    """NCCL's words when it does not work on this node, whoever the peers are; else None.

    Its first line, and the one behind "Last error:", which names what failed.
    """
    text = str(error).strip()
    low = text.lower()
    if not isinstance(error, RuntimeError) or not any(word in low for word in _LOCAL):
        return None
    if any(word in low for word in _REMOTE):
        return None
    first, last = text.splitlines()[0], text.partition(_LAST)[2].strip().splitlines()[:1]
    return "; ".join([first, *last])
