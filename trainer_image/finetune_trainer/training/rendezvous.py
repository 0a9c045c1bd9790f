"""How ranks find each other: through a store on rank 0's address, then in one process group.

torch's own rendezvous are not used: `env://` listens on all addresses of a host, and those of
torchrun replace the members of a gang by themselves, which is the operator's task here. This store
listens on the address of the pod only, so that two gangs on one host can use the same port.
DeepSpeed adopts the existing group.

`lost_a_peer` and `local_problem` find the cause of an error of torch.distributed.
"""

import math
import os
import socket
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed import distributed_c10d

from finetune_api.exit_codes import ExitCode
from finetune_api.names import with_port
from finetune_trainer.common import machine
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.waiting import Notify, Waiting, family_of
from finetune_trainer.training import assembly
from finetune_trainer.training.place import Place

# gloo and NCCL raise RuntimeError or DistBackendError for everything, so the text decides.
_LOST = ("connection", "timed out", "broken pipe", "socket", "nccl", "gloo")
# NCCL's names of errors on this node: CUDA, driver, memory, visible devices.
_LOCAL = ("ncclunhandledcudaerror", "ncclinvalidusage", "ncclinvalidargument")
# An error of the system: network interfaces or memory, but also the socket that led to a lost peer.
_SYSTEM = "ncclsystemerror"
_REMOTE = ("ncclremoteerror", "timed out", "timeout", "connect", "broken pipe", "closed by")
_LAST = "Last error:"


def join(
    place: Place,
    timeout: timedelta,
    notify: Notify = lambda _: None,
    connect_timeout: float = math.inf,
) -> torch.device:
    """Join the gang's process group and return this rank's device.

    Waits without a limit for ranks that have not started, and reports to `notify` which those are.
    All later groups get the same `timeout`. Raises TrainerError 78 if the device cannot be used, or
    if the host of rank 0 does not answer at all for `connect_timeout` seconds, and 88 if a rank
    that had joined is gone.
    """
    device = device_of(place.local_rank)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    waiting = Waiting(notify)
    if place.rank != 0:
        place = replace(place, address=assembly.address_of_store(place, waiting, connect_timeout))
    store = _store(place, timeout)
    assembly.assemble(store, place, waiting)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world,
        timeout=timeout,
    )
    _bound_every_group(timeout)
    return device


def device_of(local_rank: int) -> torch.device:
    """Return the device of a rank. Raises TrainerError (78) if it cannot be used.

    The CPU is used only if the container has no GPU. A gang that computes on the CPU although it
    has GPUs looks healthy, but takes a hundred times as long.
    """
    if not torch.cuda.is_available():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")  # the CPU was chosen
        if machine.has_gpus() and not hidden:
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"this container was given GPUs ({machine.GPU_CONTROL_DEVICE} exists), but torch "
                f"{torch.__version__} cannot use them: {_cuda_problem()}; compare the driver of "
                f"the node (nvidia-smi) with CUDA {torch.version.cuda} of the trainer image, and "
                "check the node's GPUs (kubectl describe node, dmesg)",
            )
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise TrainerError(
            ExitCode.ENVIRONMENT_UNUSABLE,
            f"process {local_rank} of this pod has no GPU: torch finds {count} of them, numbered "
            "from 0; compare workers.devicesPerWorker with what nvidia-smi shows in the pod, and "
            "check CUDA_VISIBLE_DEVICES in workers.template",
        )
    return torch.device("cuda", local_rank)


def _cuda_problem() -> str:
    """Return torch's explanation of why CUDA is not available, on one line."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter: not compiled with CUDA
        return str(error).strip().splitlines()[0].rstrip(".")
    return "it finds no device"


def tighten(progress_deadline: float, control: Any) -> timedelta:
    """Shorten the timeouts of all groups except `control` after the first step, and return it.

    The timeout becomes a sixth of the progress deadline, 30 s to 10 min. A cut network is noticed
    by this timeout only. On `control`, ranks wait for storage. Method: torchtitan's
    `set_pg_timeouts`.
    """
    timeout = timedelta(seconds=min(600.0, max(30.0, progress_deadline / 6)))
    for group in distributed_c10d._world.pg_map:
        if group is not control:
            distributed_c10d._set_pg_timeout(timeout, group)
    return timeout


def _store(place: Place, timeout: timedelta) -> TCPStore:
    if place.rank == 0:
        listener = _listen(place)
        return TCPStore(
            place.address,
            place.port,
            place.world,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
    return TCPStore(place.address, place.port, place.world, timeout=timeout)


def _listen(place: Place) -> socket.socket:
    """Listen on the pod's address. The port of a gang that has just ended may need a moment."""
    deadline = time.monotonic() + 30
    where, family = (place.address, place.port), family_of(place.address)
    while True:
        try:
            return socket.create_server(where, family=family, backlog=4096)
        except OSError as error:
            if time.monotonic() > deadline:
                raise TrainerError(
                    ExitCode.ENVIRONMENT_UNUSABLE,
                    f"cannot listen on {with_port(*where)} ({error.strerror})",
                ) from error
        time.sleep(0.5)


def _bound_every_group(timeout: timedelta) -> None:
    """Give a timeout to groups that are made without one, as DeepSpeed does.

    Otherwise, the loss of a peer would be noticed after half an hour.
    """
    original = dist.new_group

    def new_group(*arguments: Any, **options: Any) -> Any:
        if len(arguments) < 2 and options.get("timeout") is None:
            options["timeout"] = timeout
        return original(*arguments, **options)

    dist.new_group = new_group


def lost_a_peer(error: BaseException) -> bool:
    """Return whether the error shows that another rank is gone or cannot be reached."""
    if not isinstance(error, RuntimeError) or local_problem(error) is not None:
        return False
    text = str(error).lower()
    # CUDA's own errors speak of peers, which are other devices of this node, and of time limits.
    if isinstance(error, torch.AcceleratorError) or "cuda error:" in text:
        return False
    return isinstance(error, dist.DistError) or any(part in text for part in _LOST)


def local_problem(error: BaseException) -> str | None:
    """Return NCCL's explanation if it does not work on this node, independently of the peers.

    This is the first line of its message, and the line after "Last error:", which names what
    failed. Returns None for all other errors.
    """
    text = str(error).strip()
    low = text.lower()
    if not isinstance(error, RuntimeError):
        return None
    is_local = any(name in low for name in _LOCAL)
    if not is_local and (_SYSTEM not in low or any(name in low for name in _REMOTE)):
        return None
    first, last = text.splitlines()[0], text.partition(_LAST)[2].strip().splitlines()[:1]
    return "; ".join([first, *last])
