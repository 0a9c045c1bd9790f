"""Attempts whose ranks are forked from a nursery: no supervisor, no export, little start-up."""

import json
import os
import subprocess
import sys
from itertools import count
from types import TracebackType
from typing import Any, Self

from finetune_api.progress import Plan
from finetune_trainer import fence
from tests.trainer import gang, weights

_network = count(1)


class Nursery:
    """The process that ranks are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )
        self._answer()

    def start(self, **request: Any) -> int:
        """Process id of a new rank."""
        return int(self._ask(request)["pid"])

    def wait(self, pid: int) -> int:
        """Its exit code."""
        return int(self._ask({"wait": pid})["code"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """No rank outlives it."""
        self._process.kill()
        self._process.communicate()  # closes its pipes, too

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def attempt(
    nursery: Nursery,
    job: gang.Job,
    world: int,
    plan: Plan,
    *,
    victim: int | None = None,
    moment: int = 0,
) -> tuple[list[int], str]:
    """The next attempt of a job, to its end: exit codes by rank, and what all of them wrote.

    `victim` is killed at the `moment`-th step of the file work of its saves.
    """
    job.attempt += 1
    epoch = fence.claim(weights.paths_of(job), "uid-1", job.attempt)
    config = job.config | {
        "role": "worker",
        "mounts": {"w": str(job.claim)},
        "plan": plan.to_dict(),
        "attempt": job.attempt,
    }
    place = f"127.{200 + os.getpid() % 50}.{next(_network) % 250}.1"
    log = job.claim / f"attempt-{job.attempt}.log"
    pids = []
    for rank in range(world):
        env = {
            "FINETUNE_RUN": json.dumps(config),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": place,
            "MASTER_PORT": "29500",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        pids.append(
            nursery.start(
                env=env,
                epoch=epoch,
                log=str(log),
                channel=os.devnull,
                crash=moment if rank == victim else 0,
            )
        )
    return [nursery.wait(pid) for pid in pids], log.read_text()
