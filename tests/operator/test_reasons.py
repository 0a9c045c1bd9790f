"""Every reason is spelled in finetune_api.reasons, and nowhere in the operator."""

import ast
from pathlib import Path

import pytest

from finetune_api.reasons import REASONS
from finetune_local.cache import TREE

OPERATOR = TREE / "operator/finetune_operator"
MODULES = {str(path.relative_to(OPERATOR)): path for path in sorted(OPERATOR.rglob("*.py"))}
# Names of phases, outcomes and condition types, which some reasons share.
SHARED = {
    "Accepted",  # condition type
    "Preempted",  # outcome
    "Suspended",  # phase, outcome and condition type
}


def literals(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_names_reasons_by_their_constants(name):
    assert literals(MODULES[name]) & set(REASONS) - SHARED == set()


def test_shared_names_are_reasons_too():
    assert set(REASONS) >= SHARED
