"""The page about the steps after training: its tests exist."""

import re

from finetune_local.cache import TREE
from tests.docs.pages import code, page, rows


def test_every_step_after_training_names_tests_that_exist() -> None:
    defined = {
        name
        for file in (TREE / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
    table = rows(page("design/after-training"))
    assert len(table) > 10
    for step, *_, tests in table:
        assert code(tests), step
        assert set(code(tests)) <= defined, step
