"""Finding and following the processes of a job's pods."""

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

    wait_for(f"{pod} finished step {step}", logged, 240)


def rank_process(job: str, rank: int) -> int:
    """Process id of a rank, by its environment: pods have process ids of their own."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            ours = any(w.startswith(b"FINETUNE_RUN") and job.encode() in w for w in words)
            if ours and b"finetune_trainer.rank" in command and f"RANK={rank}".encode() in words:
                return int(entry.name)
    raise AssertionError(f"no rank {rank} of {job}")
