"""Files of data: which types there are, by the name of a file, and which files are not data."""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.spec import DataSource
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.example import bad_data

KINDS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
_COMPRESSIBLE = (".jsonl", ".json", ".csv")
ALLOWED_KINDS = "allowed are .jsonl, .json and .csv, each optionally with .gz, .parquet and .arrow"

# What `datasets` and the Hub write beside the data.
_METADATA = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json")


@dataclass(frozen=True)
class SourceFile:
    """A local data file, and the name that messages call it by."""

    path: Path
    name: str


SourceFiles = list[tuple[DataSource, list[SourceFile]]]
"""The sources of a split, each with its local files."""


def kind_of(path: Path) -> str:
    """Return the file type that the name shows: one of KINDS, or "" for any other."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = suffixes[-1:] == [".gz"]
    found = suffixes[-2:-1] if compressed else suffixes[-1:]
    return found[0] if found and found[0] in (_COMPRESSIBLE if compressed else KINDS) else ""


def is_data(name: str) -> bool:
    """Return whether a file below a source's folder is data, by its name without folders."""
    return not name.startswith(".") and name not in _METADATA and bool(kind_of(Path(name)))


def unknown_kind(path: Path, name: str) -> TrainerError:
    """Return the error for a file whose name does not show a supported type."""
    found = "".join(path.suffixes[-2:]) or "(none)"
    return TrainerError(ExitCode.BAD_DATA, f"{name}: file type {found}; {ALLOWED_KINDS}")


def check_columns(names: list[str], file: str) -> None:
    """Raise TrainerError (65) if two columns of a file have the same name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problem = f"two columns have the name {twice[0]!r}"
        raise bad_data(file, problem, "rename or remove one")
