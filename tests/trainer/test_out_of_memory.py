"""The advice when a device is out of memory."""

from collections.abc import Callable

import pytest

from finetune_api.run import RunConfig
from finetune_api.spec import Training
from finetune_trainer.training import out_of_memory
from tests.trainer import gang

GIGABYTE = 10**9
# World size, changes of the plan and of the training -> memory of the states, advice.
CASES: dict[str, tuple[int, dict, dict, str, str]] = {
    "ZeRO 1 of 8e9 parameters on 8 devices": (
        8,
        {"zeroStage": 1, "microBatchSize": 4, "activationCheckpointing": "Always"},
        {},
        "76.0 GB per device at ZeRO stage 1 on 8 devices, in addition to the activations of 4 x "
        "128 tokens",
        "set deepspeed.microBatchSize to 2, or raise deepspeed.zeroStage to 2 (32.0 GB per "
        "device), or use more workers, or create a new job with training.sequenceLength 64",
    ),
    "ZeRO 3": (
        8,
        {"zeroStage": 3, "activationCheckpointing": "Always"},
        {},
        "18.0 GB per device at ZeRO stage 3",
        "set deepspeed.offload to Optimizer (2.0 GB per device), or use more workers, or create a "
        "new job with training.sequenceLength 64",
    ),
    "nothing but more workers is left": (
        8,
        {"zeroStage": 3, "activationCheckpointing": "Always", "offload": "OptimizerAndParameters"},
        {},
        "0.0 GB per device at ZeRO stage 3",
        "use more workers, or create a new job with training.sequenceLength 64",
    ),
    "one device, bf16 moments": (
        1,
        {"activationCheckpointing": "Always", "checkpointBytes": 8 * 8 * GIGABYTE},
        {"optimizer": {"momentPrecision": "BF16"}},
        "112.0 GB per device at ZeRO stage 2 on 1 devices",
        "set deepspeed.offload to Optimizer (16.0 GB per device), or create a new job with "
        "training.sequenceLength 64",
    ),
    "fp32": (
        8,
        {"zeroStage": 3, "offload": "Optimizer"},
        {"precision": "FP32"},
        "4.0 GB per device",
        "set deepspeed.activationCheckpointing to Always, or use more workers",
    ),
}


@pytest.mark.parametrize(
    ("world", "plan", "training", "held", "advice"), CASES.values(), ids=CASES.keys()
)
def test_the_message_names_the_memory_of_states_and_possible_changes(
    configured: Callable[..., RunConfig],
    world: int,
    plan: dict,
    training: dict,
    held: str,
    advice: str,
) -> None:
    changed = configured().training.to_dict() | training
    message = out_of_memory.message(
        gang.make_plan(**({"checkpointBytes": 12 * 8 * GIGABYTE} | plan)),
        Training.model_validate(changed),
        world,
        "CUDA out of memory",
    )
    assert held in message
    assert message.partition("tokens; ")[2].startswith(advice)
    assert len(message) < 700
