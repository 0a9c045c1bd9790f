"""The files at an address, and which of them are needed. Names are paths below the address."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.source_file import KINDS, is_data
from finetune_trainer.run_dir.safetensors_header import INDEX, SINGLE, indexed_files

# Configuration, tokenizer, templates, licence. Weights in other formats, pictures and folders of
# other frameworks are left out: they are as large as the model and are not used.
_MODEL_TEXTS = (
    "*.json",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "*.md",
    "LICENSE*",
    "NOTICE*",
)
_FOLDERS_OF_TEXTS = ("additional_chat_templates/",)


@dataclass(frozen=True)
class RemoteFile:
    """One file. `tag` changes whenever the contents do (Git blob, ETag)."""

    name: str
    size: int  # bytes
    tag: str
    sha256: str | None = None  # of the contents, if the store knows it


class Remote(Protocol):
    """A resolved address: a commit, or the objects as they were at one moment."""

    @property
    def address(self) -> str:
        """The address, for messages."""

    def files(self) -> list[RemoteFile]:
        """Return all files below the address, sorted by name."""

    def read(self, file: RemoteFile, offset: int) -> Iterator[bytes]:
        """Yield the contents from `offset` (bytes) on.

        Raises InterruptedTransferError if a retry may help, TrainerError otherwise.
        """


def model_text_files(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return the files of a model except its weights."""
    return [
        file
        for file in files
        if file.name.startswith(_FOLDERS_OF_TEXTS)
        or (
            "/" not in file.name
            and not file.name.startswith(".")
            and any(fnmatchcase(file.name, pattern) for pattern in _MODEL_TEXTS)
        )
    ]


def safetensors_files(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """Return all files that may be weights."""
    return [file for file in files if fnmatchcase(file.name, "*.safetensors")]


def model_weight_files(files: Iterable[RemoteFile], folder: Path, address: str) -> list[RemoteFile]:
    """Return the safetensors files of a model whose index, if it has one, is in `folder`.

    Only the files that the index names: a repository may hold the same weights twice
    (consolidated.safetensors). TrainerError 66 if one is missing or the index is not valid.
    """
    there = {file.name: file for file in files}
    wanted = [SINGLE]
    if (folder / INDEX).is_file():
        try:
            wanted = indexed_files(folder / INDEX)
        except ValueError:
            raise input_missing(
                f"{address}: {INDEX} is not a valid index file", "copy it again"
            ) from None
    lacking = [name for name in wanted if name not in there]
    if lacking:
        found = ", ".join(sorted(there)[:8]) or "nothing"
        raise input_missing(
            f"{address}: no weights {lacking[0]}; found {found}",
            "name a model with safetensors weights",
        )
    return [there[name] for name in wanted]


def data_files(files: Iterable[RemoteFile], path: str, address: str) -> list[RemoteFile]:
    """Return the file, the files of a folder, or those that a glob matches; sorted by name.

    Hidden files are not data. TrainerError 66 if there is no file.
    """
    visible = [file for file in files if not _hidden(file.name, path)]
    if is_glob(path):
        found = [file for file in visible if _matches(file.name, path)]
        remedy = "check the pattern (*, **, [ab])"
    else:
        found = [file for file in visible if file.name == path]
        folder = f"{path}/" if path else ""
        found = found or [
            file for file in visible if file.name.startswith(folder) and is_data(_leaf(file.name))
        ]
        remedy = "check the path; a folder needs files of " + ", ".join(KINDS)
    if not found:
        raise input_missing(f"{address}: no such file", remedy)
    return sorted(found, key=lambda file: file.name)


def is_glob(path: str) -> bool:
    """Return whether a path is a pattern."""
    return any(sign in path for sign in "*[")


def fixed_part(path: str) -> str:
    """Return the folders before the first wildcard, without a slash at the end; may be empty."""
    parts = path.split("/")
    fixed = next((n for n, part in enumerate(parts) if is_glob(part)), len(parts))
    return "/".join(parts[:fixed])


def input_missing(problem: str, remedy: str) -> TrainerError:
    """Return the error of an input that does not exist."""
    return TrainerError(ExitCode.INPUT_MISSING, f"{problem}; {remedy}")


def _hidden(name: str, path: str) -> bool:
    """Return whether a part of the name is hidden, below the part that `path` names explicitly."""
    fixed = fixed_part(path)
    rest = name[len(fixed) :] if name.startswith(fixed) else name
    return any(part.startswith(".") for part in rest.split("/"))


def _matches(name: str, pattern: str) -> bool:
    return _compiled(pattern).fullmatch(name) is not None


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a glob: `**` is any number of folders, `*` is within one, `[ab]` is a letter."""
    text = ""
    position = 0
    while position < len(pattern):
        rest = pattern[position:]
        letters = re.match(r"\[[^]/]+\]", rest)
        if rest.startswith("**/"):
            text, position = text + "(?:[^/]+/)*", position + 3
        elif rest.startswith("**"):
            text, position = text + ".*", position + 2
        elif rest.startswith("*"):
            text, position = text + "[^/]*", position + 1
        elif letters:
            inner = letters[0][1:-1].replace("\\", "\\\\")
            inner = "^" + inner[1:] if inner.startswith("!") else inner
            text, position = f"{text}[{inner}]", position + len(letters[0])
        else:
            text, position = text + re.escape(rest[0]), position + 1
    return re.compile(text)


def _leaf(name: str) -> str:
    return name.rpartition("/")[2]
