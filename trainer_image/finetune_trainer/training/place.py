"""The position of a rank in its gang, from the environment variables that the supervisor set."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """The position of this process in the gang, and the address of rank 0."""

    rank: int
    local_rank: int
    world: int
    address: str
    port: int
    processes: int = 1
    """Number of ranks of each worker."""
    name: str = ""
    """DNS name of worker 0, which may get another address while the gang is not complete."""

    @property
    def worker(self) -> int:
        """The index of the worker that this rank belongs to."""
        return self.rank // self.processes

    @classmethod
    def from_environment(cls) -> "Place":
        """Read the environment variables that the supervisor set."""
        return cls(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            world=int(os.environ["WORLD_SIZE"]),
            address=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            name=os.environ.get("PET_MASTER_ADDR", ""),
        )
