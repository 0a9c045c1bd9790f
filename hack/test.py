"""Run all tests: the suite in .venv, and the operator's tests on the interpreter of the images.

The slow tests of the operator run only on the images' interpreter. On a machine that cannot have it
they run in .venv with the others, unless CI is set, where that is an error.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.tools.interpreter import interpreter

from finetune_local.build import BuildError

TREE = Path(__file__).resolve().parent.parent
_PARALLEL = ["-n", "3", "--dist", "loadfile", "--no-loadscope-reorder"]


def main() -> int:
    """Return the first exit code that is not 0."""
    try:
        images = interpreter()
    except BuildError as error:
        print(f"test: {error}", file=sys.stderr)
        if os.environ.get("CI"):
            return 1
        return _run([sys.executable, "-m", "pytest", *_PARALLEL])
    path = f"{images.parent}:{os.environ['PATH']}"
    session = ["-m", "nox", "--session", f"tests-{images.name.removeprefix('python')}", "--"]
    codes = [
        _run(
            [sys.executable, *session, *_PARALLEL], PATH=path, NOX_ERROR_ON_MISSING_INTERPRETERS="1"
        ),
        _run([sys.executable, "-m", "pytest", *_PARALLEL, "--operator-elsewhere"]),
    ]
    return next((code for code in codes if code), 0)


def _run(command: list[str], **environment: str) -> int:
    return subprocess.run(command, cwd=TREE, env=os.environ | environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
