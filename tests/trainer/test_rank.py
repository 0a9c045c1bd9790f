"""How a rank's end becomes an exit code, in process."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from finetune_api.exit_codes import ExitCode
from finetune_trainer import attempt, rendezvous
from finetune_trainer.channel import ChannelReporter
from finetune_trainer.errors import TrainerError
from tests.trainer.gang import make_job, make_plan


def no_memory() -> Exception:
    """What torch raises itself."""
    try:
        torch.empty(1 << 48)
    except RuntimeError as error:
        return error
    raise AssertionError("there is a petabyte of memory")


ENDS: dict[str, tuple[Exception, int, str]] = {
    "planned": (TrainerError(ExitCode.BAD_DATA, "a bad row"), 65, "a bad row"),
    "out of device memory": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore"),
        87,
        "out of device memory (CUDA out of memory. Tried to allocate 2.00 GiB): weights, gradients "
        "and optimizer states take 10.0 GB a device at ZeRO stage 2 on 2 devices, beside the "
        "activations of 1 x 128 tokens; set deepspeed.activationCheckpointing to Always, or raise "
        "deepspeed.zeroStage to 3 (9.0 GB a device), or set deepspeed.offload to Optimizer (2.0 GB "
        "a device), or take more workers, or make another job with training.sequenceLength 64",
    ),
    "out of the host's memory": (
        no_memory(),
        87,
        "out of device memory ([enforce fail at alloc_cpu.cpp",
    ),
    "a lost peer": (
        RuntimeError("[gloo/tcp.cc] Connection closed by peer [127.0.0.1]:1\ntrace"),
        88,
        "a peer was lost: [gloo/tcp.cc] Connection closed by peer [127.0.0.1]:1",
    ),
    "nobody came": (
        dist.DistStoreError("Timed out after 601 seconds waiting for clients"),
        88,
        "a peer was lost: Timed out after 601 seconds waiting for clients",
    ),
    "anything else": (RuntimeError("shape mismatch"), 1, ""),
}


@pytest.mark.parametrize(("error", "code", "message"), ENDS.values(), ids=ENDS.keys())
def test_ends(
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
    with os.fdopen(reader) as said:
        told = [json.loads(line)["error"] for line in said]
    assert [failure["code"] for failure in told] == ([code] if message else [])
    for failure in told:
        assert failure["message"] == message or (
            code == 87 and failure["message"].startswith(message)
        )


@pytest.mark.slow
def test_a_rendezvous_to_which_nobody_comes_is_a_lost_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "CONNECT_SECONDS", 1.0)
    place = rendezvous.Place(1, 0, 2, "127.255.98.9", 29500)
    with pytest.raises(Exception, match=r"127\.255\.98\.9") as caught:
        rendezvous.join(place, timedelta(seconds=1))
    assert attempt._lost_a_peer(caught.value)
