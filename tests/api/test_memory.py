"""The memory of a device and of a host, by part."""

from dataclasses import replace

import pytest

from finetune_api.memory import (
    ModelFacts,
    Setting,
    bucket_elements,
    device_bytes,
    host_bytes,
    state_bytes,
)

P, N = 8_000_000_000, 8
FACTS = ModelFacts(
    layers=32,
    hidden=4096,
    vocabulary=128_256,
    layer_parameters=218_112_000,
    largest_parameter=525_336_576,
    active_parameters=6_979_321_856,
    attention_width=131_072,
    row_tokens=4096,
    layer_bytes=825_853_440,
)
SETTING = Setting(
    world=N,
    devices_per_worker=8,
    zero_stage=2,
    micro_batch_size=1,
    recompute="Never",
    offload="None",
    weight_bytes=2,
    state_bytes=12,
)


@pytest.mark.parametrize(
    ("stage", "per_parameter"),
    {1: 2 + 6 + 12 / N, 2: 2 + (4 + 12) / N, 3: (2 + 4 + 12) / N}.items(),
)
def test_the_bytes_of_the_states(stage: int, per_parameter: float) -> None:
    found = state_bytes(P, replace(SETTING, zero_stage=stage))
    assert sum(found.values()) == per_parameter * P


def test_masters_of_fp32_are_the_weights_unless_the_stage_partitions_them() -> None:
    fp32 = replace(SETTING, weight_bytes=4)
    assert state_bytes(P, fp32)["masters"] == 0
    assert state_bytes(P, replace(fp32, zero_stage=3))["masters"] == 4 * P // N


def test_moments_in_bf16_take_half() -> None:
    full = state_bytes(P, SETTING)["moments"]
    assert state_bytes(P, replace(SETTING, state_bytes=8))["moments"] == full / 2


def test_offload_moves_states_from_the_device_to_the_host() -> None:
    offloaded = replace(SETTING, offload="Optimizer")
    found = state_bytes(P, offloaded)
    assert found == {"weights": 2 * P, "gradients": 0, "masters": 0, "moments": 0}
    more = host_bytes(P, 0, offloaded).training - host_bytes(P, 0, SETTING).training
    assert more == (4 + 8 + 4 + 4 + 2) * P
    everything = replace(SETTING, zero_stage=3, offload="OptimizerAndParameters")
    assert sum(state_bytes(P, everything).values()) == 0


def test_recomputation_keeps_the_inputs_of_layers_and_one_layer() -> None:
    kept = device_bytes(P, FACTS, SETTING).activations
    recomputed = device_bytes(P, FACTS, replace(SETTING, recompute="Always")).activations
    assert kept == 32.5 * FACTS.layer_bytes
    assert recomputed == 32 * 4096 * 4096 * 2 + 1.5 * FACTS.layer_bytes


def test_twice_the_rows_take_twice_the_activations() -> None:
    one, two = (
        device_bytes(P, FACTS, replace(SETTING, micro_batch_size=rows)).activations
        for rows in (1, 2)
    )
    assert two == 2 * one


def test_the_total_is_the_sum_of_all_parts() -> None:
    found = device_bytes(P, FACTS, SETTING)
    assert found.total == sum(found.to_dict().values())


def test_a_checkpoint_needs_a_copy_of_the_states_in_host_memory() -> None:
    found = host_bytes(P, FACTS.largest_parameter, SETTING)
    assert found.checkpoint - found.training == 12 * P
    assert found.peak == max(found.load, found.checkpoint)


def test_a_rank_of_zero_3_loads_only_its_slices() -> None:
    base = host_bytes(0, 0, SETTING).training
    stage3 = replace(SETTING, zero_stage=3)
    assert host_bytes(P, 0, SETTING).load - base == 8 * 2 * P
    assert host_bytes(P, 0, stage3).load - base == 2 * P


def test_buckets_follow_the_model_within_bounds() -> None:
    assert [bucket_elements(count) for count in (1000, 135_000_000, 8 * 10**9)] == [
        1 << 20,
        8_437_500,
        200_000_000,
    ]
