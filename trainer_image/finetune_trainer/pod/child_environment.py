"""The environment variables that the supervisor sets for its child processes.

Variables that the pod's template sets take precedence over these defaults.
"""

import os

from finetune_trainer.common import machine
from finetune_trainer.common.environment import Gang


def for_every_child(*, online: bool) -> dict[str, str]:
    """Return variables that keep logs readable and libraries offline.

    `online` allows downloads from the Hugging Face Hub.
    """
    defaults = {
        "HF_HUB_OFFLINE": "0" if online else "1",
        "HF_HOME": f"/tmp/huggingface-{os.getuid()}",  # the home folder may be read-only
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # torch and DeepSpeed use deprecated functions; users can do nothing about these warnings.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def for_rank(gang: Gang, local_rank: int, master_address: str) -> dict[str, str]:
    """Return the variables of one rank: its position in the gang, threads and folders.

    `master_address` is the IP address of worker 0.
    """
    variables = {
        "RANK": str(gang.node_rank * gang.processes + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(gang.world_size),
        "LOCAL_WORLD_SIZE": str(gang.processes),
        "GROUP_RANK": str(gang.node_rank),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(gang.master_port),
        **threads(gang.processes),
        "TORCH_EXTENSIONS_DIR": "/tmp/torch-extensions",
        "TRITON_CACHE_DIR": "/tmp/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/inductor",
    }
    if not machine.has_gpus():
        # Without this, malloc maps and unmaps every large tensor on CPU, and page faults take a
        # quarter of the time.
        variables |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    if master_address.startswith("127.") and "GLOO_SOCKET_IFNAME" not in os.environ:
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    return variables


def threads(processes: int) -> dict[str, str]:
    """Return the number of OpenMP threads of each of `processes` that share the container."""
    share = max(1, machine.usable_cpus() // processes)
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))}
