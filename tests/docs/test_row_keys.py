"""The page on data lists every key that is refused, as the table in the code has it."""

from finetune_local.cache import TREE
from finetune_trainer.data.row_keys import MESSAGES, ROWS, Refused

FORMATS = {
    "messages": "Messages",
    "pair": "PromptCompletion",
    "alpaca": "plain Alpaca",
    "alpaca chat": "Alpaca as a conversation",
    "text": "Text",
}


def keys(rule: Refused) -> str:
    return ", ".join(f"`{name}`" for name in rule.names)


def formats(rule: Refused) -> str:
    names = [FORMATS[shape] for shape in rule.shapes]
    if len(names) == len(FORMATS):
        return "every format"
    if len(names) == len(FORMATS) - 1:
        (missing,) = set(FORMATS.values()) - set(names)
        return f"every format but {missing}"
    return ", ".join(names)


def table(lines: list[str], heading: str) -> list[str]:
    """Return the rows of the table with a heading."""
    begin = lines.index(heading) + 2
    end = next(number for number in range(begin, len(lines)) if not lines[number])
    return lines[begin:end]


def test_the_page_lists_every_refused_key() -> None:
    lines = (TREE / "docs/use/data.md").read_text().splitlines()
    rows = [f"| {keys(rule)} | {rule.what} | {formats(rule)} |" for rule in ROWS]
    assert table(lines, "| key | content | refused in |") == rows
    assert table(lines, "| key | content |") == [
        f"| {keys(rule)} | {rule.what} |" for rule in MESSAGES
    ]
