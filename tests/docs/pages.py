"""Functions that read pages of the documentation, for tests."""

import re
from collections.abc import Iterator
from typing import Any

from hack.crd import structural

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_local.cache import TREE

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


def page(name: str) -> str:
    """Return the text of a page of docs/, for example of use/data."""
    return (TREE / "docs" / f"{name}.md").read_text()


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading of the second level; the key "" has the text above."""
    parts = _SECTION.split(text)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of all tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    found = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    ruled = {i for i, cells in enumerate(found) if set("".join(cells)) <= {"-", "|"}}
    heads = {i - 1 for i in ruled}
    return [cells for i, cells in enumerate(found) if i not in ruled | heads]


def code(text: str) -> list[str]:
    """Return what is between backticks in text and in tables."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def commands(text: str) -> Iterator[str]:
    """Yield the commands of sh blocks, with continued lines joined, and those in backticks."""
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S):
        yield from (re.sub(r"\s+#.*", "", line) for line in block.replace("\\\n", " ").splitlines())
    yield from code(text)


def field_exists(path: str) -> bool:
    """Return whether spec or status has a field such as runPolicy.maxRestarts or spec.suspend."""
    first, _, rest = path.partition(".")
    models = {"spec": FineTuneJobSpec, "status": FineTuneJobStatus}
    schema: dict[str, Any] = structural(models.get(first, FineTuneJobSpec))
    for part in (rest if first in models else path).split("."):
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return True
        schema = schema.get("properties", {}).get(part.removesuffix("[]"), {})
        schema = schema.get("items", schema)
    return bool(schema)
