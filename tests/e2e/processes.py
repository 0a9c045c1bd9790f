"""Waits for steps of a job and finds the processes of its ranks."""

from pathlib import Path

from finetune_local.cluster import ClusterError
from finetune_operator import informer
from tests.installed import read, wait_for


def wait_for_step(cluster, pod: str, step: int) -> None:
    def logged() -> bool:
        try:
            return f"step {step} of" in read(cluster, f"{informer.path('default')}/{pod}/log")
        except ClusterError:
            return False

    wait_for(f"{pod} to finish step {step}", logged, 240)


def rank_process(job: str, rank: int) -> int:
    """Return the process id of a rank, found by its environment, as this machine counts.

    Inside a pod the process has another id.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            is_of_job = any(v.startswith(b"FINETUNE_RUN") and job.encode() in v for v in variables)
            is_rank = b"finetune_trainer.rank" in command and f"RANK={rank}".encode() in variables
            if is_of_job and is_rank:
                return int(entry.name)
    raise AssertionError(f"no rank {rank} of {job}")
