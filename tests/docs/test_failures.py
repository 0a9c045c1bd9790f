"""docs/failures.md has one row for each reason that operator or trainer can give, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from finetune_api.exit_codes import MEANINGS, ExitCode, meaning
from finetune_api.progress import Stage
from finetune_api.reasons import REASONS
from finetune_api.status import Phase
from finetune_local.cache import TREE
from finetune_operator.plan.outcomes import Outcome
from tests.docs.pages import page, rows, sections

SECTIONS = sections(page("failures"))
PHASES = [cells[0].strip("`") for cells in rows(SECTIONS["PHASE"])]
FIRST = [cells[0] for title, text in SECTIONS.items() if title != "PHASE" for cells in rows(text)]
WORDS = [word for cell in FIRST for word in re.findall(r"`(\w+)`", cell)[:1]]
FOREIGN = re.findall(r"`(\w+)`", " ".join(c[0] for c in rows(SECTIONS["Words of Kubernetes"])))

OPERATOR = [
    *(TREE / "operator/finetune_operator/plan").glob("*.py"),
    TREE / "operator/finetune_operator/execute.py",
]
TRAINER = list((TREE / "trainer_image/finetune_trainer").rglob("*.py"))
# Words in the operator's decisions that are no reasons. A new word is either one, with a row, or
# belongs here.
NO_REASONS = {
    *("CheckpointAvailable", "Progressing", "WorkersReady"),  # condition types
    *("True", "False", "Unknown", "Normal", "Warning"),
    *("Job", "Pod", "Service"),  # classes and kinds
    *("DisruptionTarget", "PodScheduled", "OOMKilled"),  # of pods, read and not told
    *("ContainerCreating", "PodInitializing"),  # pass by themselves, not told
    *("ALL", "FallbackToLogsOnError", "Memory", "OnRootMismatch", "RuntimeDefault"),  # of pods made
    *("All", "Always", "Auto", "ContinuedPretraining", "Never", "None"),  # of the spec
    *("Background", "Strict"),  # of requests
}


def words(file: Path) -> set[str]:
    """Text constants that are one CamelCase word."""
    nodes = ast.walk(ast.parse(file.read_text()))
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {text for text in texts if re.fullmatch(r"[A-Z][A-Za-z]+", text)}


def of_operator() -> set[str]:
    found = set(REASONS).union(*(words(file) for file in OPERATOR))
    return found - NO_REASONS - {*get_args(Stage), *get_args(Phase), *get_args(Outcome)}


def given(file: Path) -> Iterator[ast.expr]:
    """What a trainer's module gives as the reason of an end."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "reason")
        place = {"TrainerError": 2, "Failure": 1}.get(ast.unparse(node.func))
        if place is not None:
            yield from node.args[place : place + 1]


GIVEN = [value for file in TRAINER for value in given(file)]
# Passed on from where it was given, or from the table of exit codes.
PASSED_ON = r"(error|meaning\(\w+\))\.reason|None if code is None else meaning\(code\)\.reason"


def of_trainer() -> set[str]:
    return {value.value for value in GIVEN if isinstance(value, ast.Constant)}


def of_exits() -> set[str]:
    return {found.reason for found in MEANINGS.values()} | {meaning(1).reason}


def test_the_reasons_are_found():
    assert {"Evicted", "ClaimMissing", "GangIncomplete", "PrepareFailed"} <= of_operator()
    assert {"StorageInUse", "CheckpointDamaged", "NetworkTrouble"} <= of_trainer()
    others = [ast.unparse(value) for value in GIVEN if not isinstance(value, ast.Constant)]
    assert [text for text in others if not re.fullmatch(PASSED_ON, text)] == []
    assert {"Completed", "Crashed"} <= of_exits()


def test_every_reason_has_a_row_and_every_row_a_reason():
    # Outcomes, too, of which these two are reasons by the same name.
    known = of_operator() | of_trainer() | of_exits() | {"Preempted", "Suspended"}
    assert sorted(known - {*WORDS, *PHASES}) == [], "without a row"
    assert sorted({*WORDS} - known - {*FOREIGN}) == [], "rows of no reason"
    assert len(WORDS) == len(set(WORDS)), "two rows for one reason"
    assert not known & {*FOREIGN}


def test_every_phase_has_a_row():
    assert sorted(PHASES) == sorted(get_args(Phase))


def test_what_is_no_reason_is_still_said_somewhere():
    assert set().union(*(words(file) for file in OPERATOR)) >= NO_REASONS


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_a_row_names_the_exit_code_of_its_reason(code: ExitCode):
    (cell,) = [cell for cell in FIRST if cell.startswith(f"`{meaning(code).reason}`")]
    assert f"({int(code)})" in cell


def test_no_other_number_stands_for_an_exit_code():
    own = {f"`{meaning(code).reason}` ({int(code)})" for code in ExitCode}
    others = {cell for cell in FIRST if re.search(r"\d", cell)} - own
    assert others == {
        "`Preempted` (75)",
        "`StorageInUse` (73, of a worker 64)",
        *(f"`{name}` (78)" for name in ("NetworkTrouble", "DamagedDownload", "InputChanged")),
        "`CheckpointDamaged` (78)",
    }
