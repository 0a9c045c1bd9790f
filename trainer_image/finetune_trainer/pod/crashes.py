"""What a crash of a child process means, from its exit code and the end of its stderr (pure).

Code in C++ ends a process with SIGABRT, and only its text says why.
"""

import signal

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_trainer.common import host_memory
from finetune_trainer.pod.state import Failure

_ABORTED = 128 + signal.SIGABRT
# NCCL's watchdog: its file, what it writes when it ends the process, and what is not due to a peer.
_NCCL = "ProcessGroupNCCL"
_WATCHDOG = (
    "Watchdog caught collective operation timeout",
    "watchdog thread terminated with exception",
    "we are taking the entire process down",
)
_OWN_DEVICE = ("CUDA error:", "Cuda failure", "watchdog got stuck")
_LENGTH = 512


def failure_of(code: int, stderr: str) -> Failure | None:
    """Return what a crash means, or None if it means nothing but itself."""
    if code != _ABORTED:
        return None
    lines = stderr.splitlines()
    if _is_lost_peer(stderr):
        line = next(text for text in lines if any(part in text for part in _WATCHDOG))
        text = f"a peer was lost: {_without_prefix(line)}"[:_LENGTH]
        return Failure(int(ExitCode.PEER_LOST), reasons.PEER_LOST, text)
    if "std::bad_alloc" in stderr:
        text = host_memory.message("std::bad_alloc")
        return Failure(int(ExitCode.OUT_OF_MEMORY), reasons.OUT_OF_MEMORY, text)
    return None


def _is_lost_peer(stderr: str) -> bool:
    """Return whether NCCL's watchdog has ended the process, and not because of its own device."""
    return (
        _NCCL in stderr
        and any(part in stderr for part in _WATCHDOG)
        and not any(part in stderr for part in _OWN_DEVICE)
    )


def _without_prefix(line: str) -> str:
    """Return a line of torch's log without time, source file and rank."""
    return line[min(line.index(part) for part in _WATCHDOG if part in line) :]
