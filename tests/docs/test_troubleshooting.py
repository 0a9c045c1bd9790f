"""The troubleshooting page has one row for each reason that can need an action, and no others."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from finetune_api.exit_codes import ExitCode, meaning
from finetune_api.progress import ForwardPass, Stage
from finetune_api.reasons import REASONS
from finetune_api.status import Phase
from finetune_local.cache import TREE
from tests.docs.pages import page, rows, sections

SECTIONS = sections(page("operate/troubleshooting"))
PHASES = [cells[0].strip("`") for cells in rows(SECTIONS["PHASE"])]
FIRST = [cells[0] for title, text in SECTIONS.items() if title != "PHASE" for cells in rows(text)]
NAMED = [name for cell in FIRST for name in re.findall(r"`(\w+)`", cell)[:1]]
FOREIGN = re.findall(r"`(\w+)`", " ".join(c[0] for c in rows(SECTIONS["Reasons of Kubernetes"])))

OPERATOR = [
    *(TREE / "operator/finetune_operator/plan").glob("*.py"),
    TREE / "operator/finetune_operator/execute.py",
]
TRAINER = list((TREE / "trainer_image/finetune_trainer").rglob("*.py"))
# Reasons of conditions and events of a healthy job; the generated page of the reasons lists them.
HEALTHY = {
    *("Accepted", "AllRunning", "Verified", "Finished", "NotSuspended"),  # conditions
    *("Prepared", "AttemptStarted", "WorkersRunning", "CheckpointVerified", "Resumed"),  # events
    *("PrepareFailed", "AttemptEnded"),  # events beside a reason that has a row
}
# CamelCase constants in the operator's decisions that are not reasons.
NOT_REASONS = {
    *("CheckpointAvailable", "Progressing", "WorkersReady"),  # condition types
    *("True", "False", "Unknown", "Normal", "Warning"),
    *("Job", "Pod", "Service", "StorageUse"),  # classes and kinds
    *("ContainersReady", "DisruptionTarget", "PodScheduled", "Ready"),  # conditions of pods
    *("ContainerStatusUnknown", "OOMKilled"),  # read from pods and not passed on
    *("ContainersReady", "PodReadyToStartContainers"),  # conditions of pods
    "DeadlineExceeded",  # of Kubernetes, compared and passed on
    *("ContainerCreating", "PodInitializing"),  # temporary and not passed on
    *("ALL", "FallbackToLogsOnError", "Memory", "OnRootMismatch", "RuntimeDefault"),  # pods
    *("ClusterFirstWithHostNet", "HugePages", "ScheduleAnyway"),  # of pods
    *("BF16", "Optimizer", "Required"),  # values of the spec
    *("DoesNotExist", "Exists", "In", "NotIn"),  # operators of selectors
    *("BestEffort", "NotBestEffort", "NotTerminating", "Terminating"),  # scopes of quotas
    *("CrossNamespacePodAffinity", "PriorityClass"),
    *("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"),  # suffixes of quantities
    *("All", "Always", "Auto", "ContinuedPretraining", "Never", "None"),  # values of the spec
    *("Background", "Strict"),  # of requests
    *("Succeeded", "Preempted", "Failed", "Suspended", "Released"),  # outcomes
}


def camel_case_constants(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {text for text in texts if re.fullmatch(r"[A-Z][A-Za-z]+", text)}


def reasons_given(file: Path) -> Iterator[str]:
    """Constants that a module of the trainer passes as the reason of an end."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        values = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
        place = {"TrainerError": 2, "Failure": 1}.get(ast.unparse(node.func))
        if place is not None:
            values += node.args[place : place + 1]
        yield from (str(value.value) for value in values if isinstance(value, ast.Constant))


def test_every_reason_that_can_need_an_action_has_one_row_and_every_row_a_reason():
    known = {*REASONS, *PHASES}
    assert sorted(REASONS.keys() - {*NAMED} - HEALTHY) == [], "reasons without a row"
    assert sorted(HEALTHY - REASONS.keys() | HEALTHY & {*NAMED}) == [], "not only in the reference"
    assert sorted({*NAMED} - known - {*FOREIGN}) == [], "rows without a reason"
    assert len(NAMED) == len(set(NAMED)), "two rows for one reason"
    assert not REASONS.keys() & {*FOREIGN}


@pytest.mark.parametrize("file", OPERATOR, ids=lambda file: file.stem)
def test_the_operator_gives_no_other_reasons(file: Path):
    others = {*get_args(Stage), *get_args(Phase), *get_args(ForwardPass)} | NOT_REASONS
    assert camel_case_constants(file) - REASONS.keys() - others == set()


def test_the_trainer_gives_no_other_reasons():
    given = {reason for file in TRAINER for reason in reasons_given(file)}
    assert given - {"None"} <= REASONS.keys()


def test_every_phase_has_a_row():
    assert sorted(PHASES) == sorted(get_args(Phase))


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_a_row_names_the_exit_code_of_its_reason(code: ExitCode):
    (cell,) = [cell for cell in FIRST if cell.startswith(f"`{meaning(code).reason}`")]
    assert f"({int(code)})" in cell


def test_no_other_number_is_given_as_an_exit_code():
    own = {f"`{meaning(code).reason}` ({int(code)})" for code in ExitCode}
    others = {cell for cell in FIRST if re.search(r"\d", cell)} - own
    assert others == {
        "`Preempted` (75)",
        "`StorageOccupied` (73, from a worker 64)",
        *(f"`{name}` (78)" for name in ("NetworkTrouble", "DamagedDownload", "InputChanged")),
        "`CheckpointDamaged` (78)",
    }
