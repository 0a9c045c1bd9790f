"""What docs/alerts.md says of causes of restarts is what the operator decides."""

import ast
import re

from finetune_local.cache import TREE
from finetune_operator.job_metrics import CAUSES
from tests.docs.pages import page, sections

BULLETS = re.findall(
    r"^\* (.*?)(?=^\*|^$)", sections(page("alerts"))["FineTuneJobRestartLoop"], re.M | re.S
)
NAMED = {
    cause: " ".join(text.split())
    for text in BULLETS
    for cause in re.findall(r"`(\w+)`", text.partition(":")[0])
}


def uncounted() -> set[str]:
    """Reasons of ends that plan/failure.py does not count."""
    source = (TREE / "operator" / "finetune_operator" / "plan" / "failure.py").read_text()
    return {
        ast.literal_eval(call.args[1])
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == "Verdict"
        and any(ast.unparse(keyword) == "counted=False" for keyword in call.keywords)
    }


def test_the_causes_that_are_named_exist():
    assert len(NAMED) > 5
    assert set(NAMED) <= CAUSES


def test_those_that_do_not_count_are_said_to_and_no_others():
    assert uncounted() >= {"Preempted", "Completed"}
    said = {cause for cause, text in NAMED.items() if "not count against `maxRestarts`" in text}
    assert said == uncounted() & set(NAMED)
