"""Check formatting, lints, types and import contracts, and show all findings."""

import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
CHECKS = [
    [str(BIN / "ruff"), "format", "--check", "."],
    [str(BIN / "ruff"), "check", "."],
    [sys.executable, "-m", "mypy"],
    # The script of import-linter would start the interpreter of the cached environment, which does
    # not contain this tree.
    [sys.executable, "-c", "from importlinter.cli import lint_imports_command as m; m()"],
]


def main() -> int:
    """Run every check and print those that failed."""
    failed = [check for check in CHECKS if subprocess.run(check, check=False).returncode]
    for check in failed:
        print(f"failed: {' '.join(check)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if not (BIN / "ruff").exists():
        sys.exit("run `make setup` first, then .venv/bin/python hack/lint.py")
    sys.exit(main())
