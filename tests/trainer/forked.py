"""Runs attempts without supervisor and export, whose ranks are forked from a nursery."""

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from finetune_api.progress import Plan
from finetune_trainer.run_dir import fence
from tests.trainer import gang, weights
from tests.trainer.preloaded import nursery

_network = count(1)


def attempt(job: gang.Job, world: int, plan: Plan, **trouble: Any) -> tuple[list[int], str]:
    """Run the next attempt of a job. Returns the exit codes by rank, and the log of all ranks."""
    pids, log = start(job, world, plan, **trouble)
    return [nursery().wait(pid) for pid in pids], log.read_text()


def start(
    job: gang.Job,
    world: int,
    plan: Plan,
    *,
    victim: int | None = None,
    moment: int = 0,
    late: float = 0,
) -> tuple[list[int], Path]:
    """Start the next attempt of a job. Returns the process ids by rank, and the log file.

    The rank `victim` is killed at the `moment`-th moment of the file operations of its saves.
    Manifests are delayed by `late` seconds.
    """
    job.attempt += 1
    epoch = fence.claim(weights.paths_of(job), "uid-1", job.attempt)
    config = job.config | {
        "role": "worker",
        "mounts": {"w": str(job.claim)},
        "plan": plan.to_dict(),
        "attempt": job.attempt,
    }
    address = f"127.{200 + os.getpid() % 50}.{next(_network) % 250}.1"
    log = job.claim / f"attempt-{job.attempt}.log"
    pids = []
    for rank in range(world):
        env = {
            "FINETUNE_RUN": json.dumps(config),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": address,
            "MASTER_PORT": "29500",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        pids.append(
            nursery().start(
                env=env,
                epoch=epoch,
                log=str(log),
                channel=os.devnull,
                crash=moment if rank == victim else 0,
                late=late,
            )
        )
    return pids, log
