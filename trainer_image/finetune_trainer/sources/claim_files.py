"""The data files at a pvc:// address."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.source_file import (
    ALLOWED_KINDS,
    SourceFile,
    is_data,
    kind_of,
    unknown_kind,
)
from finetune_trainer.run_dir.paths import claim_path


def files_on_claim(mounts: dict[str, str], uri: str) -> list[SourceFile]:
    """Return the file, every data file below the folder, or what the glob matches; sorted by name.

    `mounts` maps the name of a claim to its path in this pod. Hidden files are skipped below a
    folder. TrainerError: 66 no file, 64 a link leads out of the claim, 65 unknown type of file.
    """
    path = claim_path(uri, mounts)
    if path.is_dir():
        relative = [str(file.relative_to(path)) for file in _data_below(path, ())]
        if not relative:
            text = f"{uri}: no data file in this folder; {ALLOWED_KINDS}"
            raise TrainerError(ExitCode.INPUT_MISSING, text)
        return [_file(mounts, f"{uri}/{name}") for name in sorted(relative)]
    if path.exists():
        return [_file(mounts, uri)]
    if glob.has_magic(uri):
        return _matches(mounts, uri)
    raise TrainerError(
        ExitCode.INPUT_MISSING,
        f"{uri}: no such file on the claim; check the path, or copy the file there",
    )


def _matches(mounts: dict[str, str], uri: str) -> list[SourceFile]:
    parts = uri.removeprefix("pvc://").split("/")
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    folder = "pvc://" + "/".join(parts[:first])
    # The root of a claim is not a valid address, but a glob may begin there.
    root = Path(mounts[parts[0]]) if first == 1 else claim_path(folder, mounts)
    pattern = "/".join(parts[first:])
    found = glob.glob(pattern, root_dir=root, recursive=True)
    names = sorted(name for name in found if (root / name).is_file())
    if not names:
        text = f"{uri}: the glob matches no file; check it, or copy the files there"
        raise TrainerError(ExitCode.INPUT_MISSING, text)
    return [_file(mounts, f"{folder}/{name}") for name in names]


def _data_below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Yield data files that are not hidden; a link back to a folder above is not followed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            if not path.name.startswith("."):
                yield from _data_below(path, (*above, here))
        elif is_data(path.name):
            yield path


def _file(mounts: dict[str, str], name: str) -> SourceFile:
    path = claim_path(name, mounts)
    if not kind_of(path):
        raise unknown_kind(path, name)
    return SourceFile(path, name)
