"""Child processes of the supervisor: their environment, how they start, send messages and end.

The environment contains the address of worker 0, whose DNS name can appear some time after its pod.
Variables that the pod's template sets take precedence over the defaults here.
"""

import ctypes
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common import machine
from finetune_trainer.common.environment import Gang
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import ENV_CHANNEL
from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.common.waiting import Lookup, Notify, Waiting, family_of

_PR_SET_PDEATHSIG = 1
_STDERR_KEPT = 65536  # bytes
_AMPLE = 16  # times the states: training needs up to 5 times as much, and pods may share a host
_libc = ctypes.CDLL(None)


class Child:
    """One process in its own process group, with a pipe for its messages.

    Its stderr is copied to the supervisor's, and the end of it is kept.
    """

    def __init__(self, name: str, rank: int | None, module: list[str], env: dict[str, str]) -> None:
        """Start `python -m` with `module` and its arguments, and with `env` added to our own."""
        self.name, self.rank = name, rank
        self._stderr = bytearray()
        reader, writer = os.pipe()
        self.reader = reader
        self._buffer = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", *module],
            env={**os.environ, **env, ENV_CHANNEL: str(writer), "PYTHONUNBUFFERED": "1"},
            pass_fds=[writer],
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        os.close(writer)
        os.set_blocking(reader, False)
        self._copier = threading.Thread(target=self._copy_stderr, daemon=True)
        self._copier.start()

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived. An incomplete line is kept for the next call."""
        try:
            while chunk := os.read(self.reader, 65536):
                self._buffer += chunk
        except BlockingIOError:
            pass
        *lines, self._buffer = self._buffer.split(b"\n")
        return [json.loads(line) for line in lines]

    def code(self) -> int | None:
        """Return the exit code as a shell shows it (128 + signal), or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return 128 - code if code < 0 else code

    def terminate(self) -> None:
        """Send SIGTERM to the process, but not to its group."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to its process group, which includes its data workers."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def finish(self) -> None:
        """Wait for the process and for the end of its output, and close its pipe."""
        self.process.wait()
        self._copier.join(timeout=2)
        os.close(self.reader)

    @property
    def stderr(self) -> str:
        """The last 64 KiB that the process wrote to stderr."""
        return bytes(self._stderr).decode(errors="replace")

    def _copy_stderr(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
                self._stderr += line
                del self._stderr[:-_STDERR_KEPT]


def receive_until(
    done: Callable[[], bool],
    children: list[Child],
    receive: Callable[[Child, dict[str, Any]], None],
) -> None:
    """Pass all messages of the children to `receive` until `done` returns True.

    `done` is called about ten times a second, or more often while messages arrive.
    """
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.reader, selectors.EVENT_READ, child)
        while True:
            for key, _ in selector.select(timeout=0.1):
                for message in key.data.receive():
                    receive(key.data, message)
                if key.data.process.poll() is not None:
                    selector.unregister(key.fd)
            if done():
                break
    for child in children:
        if child.process.poll() is not None:
            for message in child.receive():
                receive(child, message)


def reap_orphans(children: list[Child]) -> None:
    """Reap orphaned processes, whose parent is process 1 of a container, except `children`."""
    ours = {child.process.pid for child in children}
    try:
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)
    except ChildProcessError:
        return


def _die_with_parent() -> None:
    """Make the kernel kill this process when the supervisor ends. Runs in the child before exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def environment_of_child(*, online: bool) -> dict[str, str]:
    """Return variables that keep logs readable and libraries offline.

    `online` allows downloads from the Hugging Face Hub.
    """
    defaults = {
        "HF_HUB_OFFLINE": "0" if online else "1",
        "HF_HOME": f"/tmp/huggingface-{os.getuid()}",  # the home folder may be read-only
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # torch and DeepSpeed use deprecated functions; users can do nothing about these warnings.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def environment_of_rank(gang: Gang, local_rank: int, master_address: str) -> dict[str, str]:
    """Return the variables of one rank: its position in the gang, threads and folders.

    `master_address` is the IP address of worker 0.
    """
    variables = {
        "RANK": str(gang.node_rank * gang.processes + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(gang.world_size),
        "LOCAL_WORLD_SIZE": str(gang.processes),
        "GROUP_RANK": str(gang.node_rank),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(gang.master_port),
        **thread_variables(gang.processes),
        "TORCH_EXTENSIONS_DIR": "/tmp/torch-extensions",
        "TRITON_CACHE_DIR": "/tmp/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    }
    return variables | network_variables(master_address)


def malloc_variables(states: int, available: int) -> dict[str, str]:
    """Return how malloc provides large tensors on CPU.

    `states` are the bytes of the master weights and moments of the container's ranks. By default,
    malloc maps and unmaps every large tensor, and page faults take a quarter of the time. In its
    heap, gaps between tensors take much memory. Where little is available, tensors of 32 MiB and
    more are mapped nevertheless.
    """
    variables = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_ARENA_MAX": "1"}
    if available >= _AMPLE * states:
        return variables | {"MALLOC_MMAP_MAX_": "0"}
    return variables | {"MALLOC_MMAP_THRESHOLD_": str(2**25)}


def network_variables(master_address: str) -> dict[str, str]:
    """Return how gloo and NCCL use the network, unless the pod's template says otherwise.

    If a collective takes too long, NCCL's watchdog ends the process with SIGABRT, because a kernel
    that waits for a lost peer cannot be interrupted otherwise. `watchdog.py` recognizes this end.
    """
    defaults = {
        # 3: end the process without first aborting communicators, which can hang itself.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
        # Errors must not wait for the main thread, which would have to wait for every kernel.
        "TORCH_NCCL_BLOCKING_WAIT": "0",
        # End the process if the watchdog itself is stuck in a call of CUDA for ten minutes.
        "TORCH_NCCL_ENABLE_MONITORING": "1",
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "600",
        # Writing the flight recorder first would delay the end by a minute, in which the operator
        # sees no cause, and its files would end with the pod.
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    }
    if master_address.startswith("127.") or master_address == "::1":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"
    if family_of(master_address) == socket.AF_INET6:
        defaults["NCCL_SOCKET_FAMILY"] = "AF_INET6"
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def thread_variables(processes: int) -> dict[str, str]:
    """Return the number of OpenMP threads of each of `processes` that share the container."""
    share = max(1, machine.usable_cpus() // processes)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))}


def wait_for_address(name: str, own: str, stop: StopSignal, notify: Notify) -> str:
    """Return the address of a name as soon as it has one, however long that takes.

    `own` is the address of this pod. Raises TrainerError 75 if the pod is asked to stop meanwhile.
    """
    lookup, waiting = Lookup(name, own), Waiting(notify)
    while lookup.address is None:
        if stop.at is not None:
            raise TrainerError(
                ExitCode.STOPPED,
                f"stopped while waiting for the address of {name}; nothing is lost",
            )
        waiting(f"the address of worker 0 ({name}: {lookup.problem})")
        time.sleep(0.05)
    lookup.close()
    waiting(None)
    return lookup.address
