"""Formatting, lints, types and the walls between packages: one command, all findings."""

import shutil
import subprocess
import sys

CHECKS = [
    ["ruff", "format", "--check", "."],
    ["ruff", "check", "."],
    [sys.executable, "-m", "mypy"],
    ["lint-imports"],
]


def main() -> int:
    """Run every check, say which failed."""
    failed = [check for check in CHECKS if subprocess.run(check, check=False).returncode]
    for check in failed:
        print(f"failed: {' '.join(check)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    assert shutil.which("ruff"), "run `make setup` first"
    sys.exit(main())
