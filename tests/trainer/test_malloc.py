"""Large tensors are mapped one by one only where memory is scarce, because that takes time."""

import pytest

from finetune_trainer.pod.processes import malloc_variables


@pytest.mark.parametrize(("available", "maps"), [(1600, False), (1599, True), (0, True)])
def test_tensors_are_mapped_where_memory_is_scarce(available, maps):
    variables = malloc_variables(100, available)
    assert ("MALLOC_MMAP_THRESHOLD_" in variables) == maps
    assert ("MALLOC_MMAP_MAX_" in variables) != maps
