"""Command lines: complete names only, and errors that name what was meant."""

import re
import sys
from collections.abc import Callable

import pytest

import finetune_cli.__main__
import finetune_local.__main__
import finetune_operator.__main__
from finetune_local.cache import TREE

PROGRAMS = {
    "kubectl finetune": finetune_cli.__main__.main,
    "finetune-local": finetune_local.__main__.main,
    "python -m finetune_operator": finetune_operator.__main__.main,
}
REFUSED = {
    "finetune-local upp": "'upp' is none of up, down, status, kubeconfig, build, demo; "
    "did you mean up?",
    "finetune-local up --device 4": "unknown argument --device; did you mean --devices?",
    "finetune-local up --dev 4": "unknown argument --dev",
    "finetune-local up --device=4": "unknown argument --device; did you mean --devices?",
    "finetune-local up --devices 0": "--devices: '0' is not a whole number from 1 to 1000",
    "finetune-local up --devices -1": "--devices: '-1' is not a whole number from 1 to 1000",
    "finetune-local up --devices two": "--devices: 'two' is not a whole number from 1 to 1000",
    "finetune-local up --nodes -1": "--nodes: '-1' is not a whole number from 0 to 100",
    "finetune-local up --nodes 300": "--nodes: '300' is not a whole number from 0 to 100",
    "finetune-local demo --kep": "unknown argument --kep; did you mean --keep?",
    "finetune-local demo --ke": "unknown argument --ke; did you mean --keep?",
    "kubectl finetune wach a": "'wach' is none of watch, logs; did you mean watch?",
    "kubectl finetune logs a --folow": "unknown argument --folow; did you mean --follow?",
    "kubectl finetune logs a --work 1": "unknown argument --work; did you mean --worker?",
    "kubectl finetune logs a --worker x": "--worker: 'x' is not a whole number at least 0",
    "kubectl finetune logs a --attempt 0": "--attempt: '0' is not a whole number at least 1",
    "kubectl finetune logs a --tail 1.5": "--tail: '1.5' is not a whole number at least 0",
    "kubectl finetune logs a b": "unknown argument b",
    "python -m finetune_operator --verb": "unknown argument --verb; did you mean --verbose?",
}


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[[str], tuple[int, str, str]]:
    """A function that runs a command line and returns its exit code, stdout and stderr."""

    def call(line: str) -> tuple[int, str, str]:
        (program,) = [name for name in PROGRAMS if line.startswith(name)]
        monkeypatch.setattr(sys, "argv", [program, *line.removeprefix(program).split()])
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[program]()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_argument_is_refused_with_the_nearest_name_and_no_internal_one(run, line):
    code, output, error = run(line)
    assert (code, output) == (2, "")
    assert error.splitlines()[-1].endswith(REFUSED[line]) or REFUSED[line] in error
    assert not re.search(r"invalid \w+ value|\b_[a-z]", error), error


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_knows_its_version(run, program):
    assert run(f"{program} --version")[:2] == (0, f"{version()}\n")


def version() -> str:
    (found,) = re.findall(r'^version = "(.*)"$', (TREE / "pyproject.toml").read_text(), re.M)
    return found


def test_no_parser_of_the_project_accepts_abbreviations():
    files = [
        file
        for part in ("api", "benchmarks", "cli", "client", "examples", "hack", "local", "operator")
        for file in (TREE / part).rglob("*.py")
    ]
    files += [*(TREE / "tests").rglob("*.py"), *(TREE / "trainer_image").rglob("*.py")]
    for file in files:
        for call in re.findall(
            r"argparse\.ArgumentParser\(((?:[^()]|\([^()]*\))+)\)", file.read_text()
        ):
            assert "allow_abbrev=False" in call, file
