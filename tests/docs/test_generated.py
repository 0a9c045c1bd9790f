"""The generated pages are up to date."""

import importlib.util
from types import ModuleType

import pytest

from finetune_local.cache import TREE


def _load() -> ModuleType:
    path = TREE / "hack" / "docs_reference.py"
    spec = importlib.util.spec_from_file_location("docs_reference", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = _load()


@pytest.mark.parametrize("name", REFERENCE.PAGES)
def test_a_generated_page_is_up_to_date(name: str):
    assert (TREE / "docs" / name).read_text() == REFERENCE.PAGES[name](), "run `make docs`"
