"""The environment variables that the operator sets in a pod."""

import os
from dataclasses import dataclass

from pydantic import ValidationError

from finetune_api.exit_codes import ExitCode
from finetune_api.names import ENV_POD_IP, ENV_RUN
from finetune_api.run import RunConfig
from finetune_trainer.common.errors import TrainerError


@dataclass(frozen=True)
class Gang:
    """The position of this pod in its gang, as torchrun's variables describe it."""

    nodes: int
    node_rank: int
    processes: int  # ranks in each pod
    master_address: str
    master_port: int

    @property
    def world_size(self) -> int:
        """The number of ranks in the gang."""
        return self.nodes * self.processes


def run_config() -> RunConfig:
    """Return the run configuration in FINETUNE_RUN.

    Raises TrainerError 64 if the variable is not set or this version cannot read it.
    """
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
    """Return the position of this pod from PET_*. TrainerError 64 names a missing variable."""
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
    """Return the pod's own address, which every listener binds. Raises TrainerError 64."""
    address = os.environ.get(ENV_POD_IP)
    if not address:
        raise TrainerError(ExitCode.BAD_CONFIGURATION, f"environment: {ENV_POD_IP} is not set")
    return address
