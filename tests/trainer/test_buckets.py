"""DeepSpeed's buckets follow the size of the model."""

import pytest

from finetune_trainer.model import buckets


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        (1000, 1 << 20),
        (134_515_008, 8_407_188),
        (1_235_814_400, 77_238_400),
        (8_030_261_248, 200_000_000),
        (70_553_706_496, 200_000_000),
        ((1 << 25) + 17, 2_097_152),
    ],
)
def test_a_bucket_is_a_sixteenth_of_the_model_within_bounds(parameters, size):
    assert set(buckets.sizes(parameters).values()) == {size}
    assert size % 2 == 0  # ZeRO-1 and 2 refuse odd sizes
