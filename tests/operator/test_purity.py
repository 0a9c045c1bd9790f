"""The planner depends on its arguments alone: it imports no clock and no I/O, and asks no clock.

The import contracts in pyproject.toml name what is forbidden; this test names what is allowed.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.cache import TREE

PLAN = TREE / "operator/finetune_operator/plan"
MODULES = {path.name: path for path in sorted(PLAN.glob("*.py"))}
ALLOWED = {
    *("collections", "dataclasses", "datetime", "enum", "hashlib", "itertools", "json", "math"),
    *("decimal", "difflib", "re", "sys", "typing"),
    *("finetune_api", "finetune_operator.plan", "finetune_operator.settings"),
}
CLOCKS = {"now", "utcnow", "today"}  # methods of datetime and date


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield str(node.module)


def calls_of_clocks(tree: ast.Module) -> list[str]:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    attributes = [func for func in calls if isinstance(func, ast.Attribute)]
    return [ast.unparse(func) for func in attributes if func.attr in CLOCKS]


def is_allowed(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in ALLOWED)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_the_planner_imports_only_what_is_pure(name):
    tree = ast.parse(Path(MODULES[name]).read_text())
    assert [module for module in imported(tree) if not is_allowed(module)] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_of_the_planner_asks_no_clock(name):
    assert calls_of_clocks(ast.parse(MODULES[name].read_text())) == []


def test_these_checks_can_fail():
    tree = ast.parse("import time\nfrom datetime import UTC, datetime\ndatetime.now(UTC)\n")
    assert [module for module in imported(tree) if not is_allowed(module)] == ["time"]
    assert calls_of_clocks(tree) == ["datetime.now"]
