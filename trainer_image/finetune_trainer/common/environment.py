"""What the operator put into the environment of a pod."""

import os
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.names import ENV_POD_IP, ENV_RUN
from finetune_api.run import RunConfig
from finetune_trainer.common.errors import TrainerError


@dataclass(frozen=True)
class Gang:
    """Place of this pod, in torchrun's names."""

    nodes: int
    node_rank: int
    processes: int
    master_address: str
    master_port: int

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes


def run_config() -> RunConfig:
    """FINETUNE_RUN; TrainerError 64 when it is absent or not what this version reads."""
    text = os.environ.get(ENV_RUN)
    if text is None:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{ENV_RUN} is not set: this program is started by the operator, in a pod",
        )
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        raise TrainerError(
            ExitCode.BAD_CONFIGURATION,
            f"{ENV_RUN} is not a run configuration that this trainer reads: "
            f"{error.errors(include_input=False, include_url=False)[:3]}",
        ) from error


def gang() -> Gang:
    """PET_*; TrainerError 64 names the one that is missing."""
    try:
        return Gang(
            nodes=int(os.environ["PET_NNODES"]),
            node_rank=int(os.environ["PET_NODE_RANK"]),
            processes=int(os.environ["PET_NPROC_PER_NODE"]),
            master_address=os.environ["PET_MASTER_ADDR"],
            master_port=int(os.environ["PET_MASTER_PORT"]),
        )
    except (KeyError, ValueError) as error:
        raise TrainerError(ExitCode.BAD_CONFIGURATION, f"environment: {error}") from error


def pod_ip() -> str:
    """Own address; everything that listens binds this one. TrainerError 64 when it is absent."""
    address = os.environ.get(ENV_POD_IP)
    if not address:
        raise TrainerError(ExitCode.BAD_CONFIGURATION, f"environment: {ENV_POD_IP} is not set")
    return address
