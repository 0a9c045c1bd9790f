"""The memory plan against what DeepSpeed allocates."""

import pytest
from benchmarks import memory_plan


@pytest.mark.slow
def test_the_plan_is_what_deepspeed_allocates() -> None:
    wrong = {
        found.case: found
        for found in memory_plan.measure(memory_plan.CASES)
        if abs(found.error) > 0.03
    }
    assert wrong == {}
