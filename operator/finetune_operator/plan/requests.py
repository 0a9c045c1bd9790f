"""What the containers request if the template names no resources, from what they need.

A pod that uses far more memory than it requests is the first to be evicted from a full node, so the
requests follow the plan. docs/use/sizes.md has the same figures for users.
"""

import math

from finetune_api import memory
from finetune_api.base import Object
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan.choice import planned_setting

# Preparation takes 1.6 GB with two processes, whatever the size of the data
# (docs/design/benchmarks.md). A limit in prepare.template bounds the number of processes.
PREPARE: Object = {"cpu": "1", "memory": "2Gi"}
_RANK_BYTES = 2 * 2**30  # of a rank, with its share of /dev/shm, besides what follows
_RANK_MILLICPUS = 500
_MIB = 2**20


def for_worker(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> Object:
    """Return CPU and memory of a worker, without its devices."""
    devices, replicas = spec.workers.devices_per_worker, spec.workers.replicas
    total = devices * _RANK_BYTES + _state_bytes(spec, status) / replicas
    return {"cpu": _cpu(devices * _RANK_MILLICPUS), "memory": f"{math.ceil(total / _MIB)}Mi"}


def _state_bytes(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Return the bytes in the host memory of all workers that grow with the model.

    A save copies the checkpoint into host memory and writes it while training goes on. With
    offload, the optimizer's state, the gradients and a copy of the weights are there as well.
    """
    plan, resolved = status.plan, status.resolved
    assert plan is not None
    assert resolved is not None
    setting = planned_setting(spec, plan, resolved.parameter_count)
    offloaded = memory.offloaded_bytes(resolved.parameter_count, setting)
    return plan.checkpoint_bytes + setting.world * sum(offloaded.values())


def _cpu(millicpus: int) -> str:
    return f"{millicpus}m" if millicpus % 1000 else str(millicpus // 1000)


def merged(defaults: Object, resources: Object) -> Object:
    """Return the requests of the template, with defaults for resources that have no limit.

    Kubernetes uses a limit as the default request, and a default of ours could exceed it.
    """
    missing = {name: n for name, n in defaults.items() if name not in resources.get("limits", {})}
    requested: Object = resources.get("requests", {})
    return missing | requested
