"""How the end of a rank becomes an exit code, and which device it uses; in process."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common import machine
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import ChannelReporter
from finetune_trainer.training import attempt, rendezvous
from finetune_trainer.training.place import Place
from tests.trainer.gang import make_job, make_plan


def no_memory() -> Exception:
    """Return an error that torch itself raised."""
    try:
        torch.empty(1 << 48)
    except RuntimeError as error:
        return error
    raise AssertionError("this machine has a petabyte of memory")


def pin_memory() -> None:
    raise torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported")


def raised_by(call: Callable[[], object]) -> Exception:
    """Return the error that a function raises, with its traceback."""
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94"
ENDS: dict[str, tuple[Exception, int, str]] = {
    "planned": (TrainerError(ExitCode.BAD_DATA, "a bad row"), 65, "a bad row"),
    "out of device memory": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
        87,
        "out of device memory (CUDA out of memory. Tried to allocate 2.00 GiB): weights, gradients "
        "and optimizer states take 10.0 GB per device at ZeRO stage 2 on 2 devices, in addition to "
        "the activations of 1 x 128 tokens; set deepspeed.activationCheckpointing to Always, or "
        "raise deepspeed.zeroStage to 3 (9.0 GB per device), or set deepspeed.offload to Optimizer "
        "(2.0 GB per device), or use more workers, or create a new job with "
        "training.sequenceLength 64",
    ),
    "out of the host's memory": (
        no_memory(),
        87,
        "out of host memory ([enforce fail at alloc_cpu.cpp",
    ),
    "out of the host's memory in Python": (
        MemoryError("Unable to allocate 2.00 GiB for an array"),
        87,
        "out of host memory (Unable to allocate 2.00 GiB for an array); th",
    ),
    "out of the host's memory in a library": (
        RuntimeError("std::bad_alloc"),
        87,
        "out of host memory (std::bad_alloc); th",
    ),
    "out of the host's memory in a call of the system": (
        OSError(12, "Cannot allocate memory"),
        87,
        "out of host memory ([Errno 12] Cannot allocate memory); th",
    ),
    "out of pinned memory": (
        raised_by(pin_memory),
        87,
        "out of host memory (CUDA error: out of memory); th",
    ),
    "out of pinned memory, named by C++": (
        torch.AcceleratorError("CUDA error: out of memory\nframe #3: cudaHostAlloc"),
        87,
        "out of host memory (frame #3: cudaHostAlloc); th",
    ),
    "devices of this node without access to each other": (
        torch.AcceleratorError(
            "CUDA error: peer access is not supported between these two devices"
        ),
        1,
        "",
    ),
    "a kernel that took too long": (
        torch.AcceleratorError("CUDA error: the launch timed out and was terminated"),
        1,
        "",
    ),
    "the same, as an older torch reports it": (
        RuntimeError("CUDA error: the launch timed out and was terminated"),
        1,
        "",
    ),
    "a kernel of NCCL that took too long": (
        dist.DistBackendError(
            f"{NCCL}, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
            "Last error:\nCuda failure 702 'the launch timed out and was terminated'"
        ),
        78,
        f"NCCL does not work on this node: {NCCL}, unhandled cuda error; Cuda failure 702",
    ),
    "a lost peer": (
        RuntimeError("[gloo/tcp.cc] Connection closed by peer [127.0.0.1]:1\ntrace"),
        88,
        "a peer was lost: [gloo/tcp.cc] Connection closed by peer [127.0.0.1]:1",
    ),
    "peers that never connect": (
        dist.DistStoreError("Timed out after 601 seconds waiting for clients"),
        88,
        "a peer was lost: Timed out after 601 seconds waiting for clients",
    ),
    "out of memory in a kernel": (
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
        87,
        "out of device memory (CUDA error: out of memory): weights, ",
    ),
    "out of memory in NCCL": (
        dist.DistBackendError(
            f"{NCCL}, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
            "ncclUnhandledCudaError: Call to CUDA function failed.\n"
            "Last error:\nCuda failure 2 'out of memory'"
        ),
        87,
        "out of device memory (Cuda failure 2 'out of memory'): weights, ",
    ),
    "NCCL cannot use a device": (
        dist.DistBackendError(
            f"{NCCL}, unhandled cuda error\n"
            "ncclUnhandledCudaError: Call to CUDA function failed.\n"
            "Last error:\nCuda failure 802 'system not yet initialized'"
        ),
        78,
        f"NCCL does not work on this node: {NCCL}, unhandled cuda error; Cuda failure 802 'system "
        "not yet initialized'; check the GPUs, the driver and the network interfaces of the node; "
        "NCCL_DEBUG=INFO in workers.template logs more",
    ),
    "NCCL finds no network interface": (
        dist.DistBackendError(
            f"{NCCL}, unhandled system error\nncclSystemError: System call (e.g. socket, malloc) "
            "or external library call failed or device error.\n"
            "Last error:\nBootstrap : no socket interface found"
        ),
        78,
        f"NCCL does not work on this node: {NCCL}, unhandled system error; Bootstrap : no socket "
        "interface found; check ",
    ),
    "two ranks on one GPU": (
        dist.DistBackendError(
            f"{NCCL}, invalid usage\nncclInvalidUsage: This usually reflects invalid usage.\n"
            "Last error:\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 0"
        ),
        78,
        f"NCCL does not work on this node: {NCCL}, invalid usage; Duplicate GPU detected : rank 0 ",
    ),
    "an argument that NCCL does not take": (
        dist.DistBackendError(f"{NCCL}, invalid argument\nncclInvalidArgument: Invalid value."),
        78,
        f"NCCL does not work on this node: {NCCL}, invalid argument; check ",
    ),
    "NCCL's peer is gone": (
        dist.DistBackendError(
            f"{NCCL}, remote process exited or there was a network error\nncclRemoteError: A call "
            "failed possibly due to a network error or a remote process exiting prematurely."
        ),
        88,
        f"a peer was lost: {NCCL}, remote process exited or there was a network error",
    ),
    "NCCL's socket to a peer is closed": (
        dist.DistBackendError(
            f"{NCCL}, unhandled system error\nncclSystemError: System call (e.g. socket, malloc) "
            "or external library call failed or device error.\nLast error:\n"
            "socketStartConnect: Connect to 10.0.0.2<4711> failed : Connection refused"
        ),
        88,
        f"a peer was lost: {NCCL}, unhandled system error",
    ),
    "a collective that took too long": (
        dist.DistBackendError("ncclSystemError after a timeout of 600000 ms"),
        88,
        "a peer was lost: ncclSystemError after a timeout of 600000 ms",
    ),
    "anything else": (RuntimeError("shape mismatch"), 1, ""),
}


@pytest.mark.parametrize(("error", "code", "message"), ENDS.values(), ids=ENDS.keys())
def test_errors_become_exit_codes_and_messages(
    error: Exception, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_job(tmp_path).config
    config |= {
        "role": "worker",
        "attempt": 1,
        "mounts": {},
        "plan": make_plan(checkpointBytes=12 * 10**9).to_dict(),
    }
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("FINETUNE_RUN", json.dumps(config))

    def train(_: ChannelReporter) -> int:
        raise error

    monkeypatch.setattr(attempt, "_train", train)
    reader, writer = os.pipe()
    assert attempt._guarded(ChannelReporter(writer)) == code
    os.close(writer)
    with os.fdopen(reader) as lines:
        reported = [json.loads(line)["error"] for line in lines]
    assert [failure["code"] for failure in reported] == ([code] if message else [])
    for failure in reported:
        assert failure["message"] == message or (
            code in (78, 87) and failure["message"].startswith(message)
        )


def test_a_gpu_that_torch_cannot_use_is_an_error_instead_of_a_run_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "GPU_CONTROL_DEVICE", tmp_path / "nvidiactl")
    assert rendezvous.device_of(0).type == "cpu"
    machine.GPU_CONTROL_DEVICE.touch()
    place = Place(0, 0, 1, "127.255.98.10", 29500)
    unusable = r"was given GPUs .* cannot use them: \S.*; compare"
    with pytest.raises(TrainerError, match=unusable) as caught:
        rendezvous.join(place, timedelta(seconds=1))
    assert caught.value.code == 78
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert rendezvous.device_of(0).type == "cpu"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert rendezvous.device_of(1) == torch.device("cuda", 1)
    with pytest.raises(TrainerError, match="process 2 of this pod has no GPU") as caught:
        rendezvous.device_of(2)
    assert caught.value.code == 78
