"""Remove what this checkout built, except trained models, after taking down its clusters.

Uses only the standard library, because `.venv` may be broken or missing.
"""

import shutil
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
BUILT = (
    ".venv",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".import_linter_cache",
    ".hypothesis",
)
MODELS = ("demo/model", "demo/workspace/runs/*/final")


def main() -> int:
    sys.path.insert(0, str(TREE / "local"))
    from finetune_local.cluster import down_all
    from finetune_local.machine import ClusterError

    try:
        for name in down_all():
            print(f"cluster {name} is down")
    except ClusterError as error:
        print(f"clean: {error}; nothing was removed", file=sys.stderr)
        return 1
    for name in BUILT:
        shutil.rmtree(TREE / name, ignore_errors=True)
    build = TREE / "build"
    kept = [folder for pattern in MODELS for folder in build.glob(pattern)]
    remove_except(build, kept)
    for folder in kept:
        print(f"kept the model {folder.relative_to(TREE)}; to remove it as well: rm -r build")
    return 0


def remove_except(folder: Path, kept: list[Path]) -> None:
    """Remove a folder, except for some folders in it and their parents."""
    if folder in kept or not folder.is_dir():
        return
    if folder.is_symlink() or not any(path.is_relative_to(folder) for path in kept):
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_except(path, kept)
        else:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
