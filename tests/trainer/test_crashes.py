"""What the supervisor makes of a process that aborts: the texts of C++ libraries on its stderr."""

from pathlib import Path

import pytest

from finetune_trainer.common.stop_signal import StopSignal
from finetune_trainer.pod.processes import Child
from finetune_trainer.pod.state import PodState
from finetune_trainer.pod.watchdog import Limits, Watch

# As torch 2.13 writes it, when its watchdog ends a process whose peer does not answer.
TIMEOUT = """\
[rank0]:[E1130 16:25:10.407 ProcessGroupNCCL.cpp:688] [Rank 0] Watchdog caught collective \
operation timeout: WorkNCCL(SeqNum=5, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=30000) \
ran for 30001 milliseconds before timing out.
[rank0]:[E1130 16:25:10.408 ProcessGroupNCCL.cpp:749] [Rank 0] Some NCCL operations have failed or \
timed out. To avoid data inconsistency, we are taking the entire process down.
terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [PG ID 0 PG GUID 0(default_pg) Rank 0] Watchdog caught collective operation timeout
Exception raised from checkTimeout at /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:691
"""
REMOTE = """\
[rank1]:[E1130 16:25:10.4 ProcessGroupNCCL.cpp:2057] [PG ID 0 PG GUID 0(default_pg) Rank 1] \
Process group watchdog thread terminated with exception: NCCL error: remote process exited or \
there was a network error, NCCL version 2.28
terminate called after throwing an instance of 'c10::DistBackendError'
"""
DEVICE = """\
[rank1]:[E1130 16:25:10.4 ProcessGroupNCCL.cpp:2057] [PG ID 0 PG GUID 0(default_pg) Rank 1] \
Process group watchdog thread terminated with exception: CUDA error: an illegal memory access was \
encountered
terminate called after throwing an instance of 'c10::AcceleratorError'
"""
MEMORY = (
    "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
)
OTHER = "[W1130 ProcessGroupNCCL.cpp:5088] Guessing device ID\nfree(): invalid pointer\n"

# stderr of each rank -> exit code, reason, and the beginning of the message
ENDS: dict[str, tuple[list[str], int, str, str]] = {
    "a lost peer on all ranks": (
        [TIMEOUT, REMOTE],
        88,
        "PeerLost",
        "a peer was lost: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=5, ",
    ),
    "an error of a peer": (
        [REMOTE],
        88,
        "PeerLost",
        "a peer was lost: watchdog thread terminated with exception: NCCL error: remote process",
    ),
    "a device that failed, and a rank that lost it": (
        [TIMEOUT, DEVICE],
        134,
        "Crashed",
        "rank 1 ended with signal SIGABRT:\n",
    ),
    "no host memory": ([MEMORY], 87, "OutOfMemory", "out of host memory (std::bad_alloc); th"),
    "anything else": ([OTHER], 134, "Crashed", "rank 0 ended with signal SIGABRT:\n"),
}


@pytest.mark.parametrize(("texts", "code", "reason", "message"), ENDS.values(), ids=ENDS.keys())
def test_an_abort_means_what_its_text_says(
    texts: list[str], code: int, reason: str, message: str, tmp_path: Path
) -> None:
    script = "import os, sys\nos.write(2, open(sys.argv[1], 'rb').read())\nos.abort()\n"
    (tmp_path / "child_that_aborts.py").write_text(script)
    state = PodState("uid-1", attempt=1, role="worker", worker_index=0)
    watch = Watch(state, Limits(1800, 300), StopSignal())
    children = []
    for rank, text in enumerate(texts):
        (tmp_path / f"{rank}.txt").write_text(text)
        module = ["child_that_aborts", str(tmp_path / f"{rank}.txt")]
        children.append(Child(f"rank {rank}", rank, module, {"PYTHONPATH": str(tmp_path)}))

    watch.run(children, lambda _: None)
    assert [child.code() for child in children] == [134] * len(texts)
    found, failure = watch.ending(watch.cause(children))
    assert failure is not None
    assert (found, failure.reason) == (code, reason)
    assert failure.message.startswith(message)
