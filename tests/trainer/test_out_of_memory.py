"""What is advised when memory runs out."""

from collections.abc import Callable

import pytest

from finetune_api.run import RunConfig
from finetune_trainer.training import out_of_memory
from tests.trainer import gang

GIGABYTE = 10**9
# World size, changes of the plan and of the training -> what is held, what is advised.
CASES: dict[str, tuple[int, dict, dict, str, str]] = {
    "ZeRO 1 of 8e9 parameters on 8 devices": (
        8,
        {"zeroStage": 1, "microBatchSize": 4, "activationCheckpointing": "Always"},
        {},
        "60.0 GB a device at ZeRO stage 1 on 8 devices, beside the activations of 4 x 128 tokens",
        "set deepspeed.microBatchSize to 2, or raise deepspeed.zeroStage to 2 (32.0 GB a device), "
        "or take more workers, or make another job with training.sequenceLength 64",
    ),
    "ZeRO 3": (
        8,
        {"zeroStage": 3, "activationCheckpointing": "Always"},
        {},
        "18.0 GB a device at ZeRO stage 3",
        "set deepspeed.offload to Optimizer (2.0 GB a device), or take more workers, or make "
        "another job with training.sequenceLength 64",
    ),
    "everything is done already": (
        8,
        {"zeroStage": 3, "activationCheckpointing": "Always", "offload": "OptimizerAndParameters"},
        {},
        "0.0 GB a device at ZeRO stage 3",
        "take more workers, or make another job with training.sequenceLength 64",
    ),
    "one device, bf16 moments": (
        1,
        {"activationCheckpointing": "Always", "checkpointBytes": 8 * 8 * GIGABYTE},
        {"optimizer": {"momentPrecision": "BF16"}},
        "112.0 GB a device at ZeRO stage 2 on 1 devices",
        "set deepspeed.offload to Optimizer (16.0 GB a device), or make another job with "
        "training.sequenceLength 64",
    ),
    "fp32": (
        8,
        {"zeroStage": 3, "offload": "Optimizer"},
        {"precision": "FP32"},
        "4.0 GB a device",
        "set deepspeed.activationCheckpointing to Always, or take more workers",
    ),
}


@pytest.mark.parametrize(
    ("world", "plan", "training", "held", "advice"), CASES.values(), ids=CASES.keys()
)
def test_the_message_has_numbers(
    configured: Callable[..., RunConfig],
    world: int,
    plan: dict,
    training: dict,
    held: str,
    advice: str,
) -> None:
    config = configured(
        plan=gang.make_plan(**({"checkpointBytes": 12 * 8 * GIGABYTE} | plan)).to_dict()
    )
    changed = config.training.to_dict() | training
    config = config.replace(training=type(config.training).model_validate(changed))
    said = out_of_memory.message(config, world, "CUDA out of memory")
    assert held in said
    assert said.partition("tokens; ")[2].startswith(advice)
    assert len(said) < 700
