"""From an address in dataset to the local files behind it."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.run import RunConfig
from finetune_api.spec import DataSource
from finetune_api.uri import is_claim
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.data.source_file import (
    ALLOWED_KINDS,
    SourceFile,
    is_data,
    kind_of,
    unknown_kind,
)
from finetune_trainer.run_dir.paths import resolve
from finetune_trainer.sources import remote


def files(config: RunConfig, source: DataSource, report: Reporter) -> list[SourceFile]:
    """The files of a source, sorted by name, all of one type.

    A file, every data file below a folder, or what a glob matches; hidden ones are skipped.
    TrainerError: 66 nothing there, 64 a link leads out of the claim, 65 no or several file types.
    """
    if is_claim(source.source):
        found = _on_claim(config, source.source.rstrip("/"))
    else:
        found = [SourceFile(*file) for file in remote.files(config, source, report)]
    for _ in found:
        report.advance()
    kinds = sorted({kind_of(file.path) for file in found})
    if len(kinds) > 1:
        raise TrainerError(
            ExitCode.BAD_DATA,
            f"{source.source}: files of several types ({', '.join(kinds)}); one source has one "
            "type: narrow it by a glob, and name the others as sources of their own",
        )
    return found


def _on_claim(config: RunConfig, uri: str) -> list[SourceFile]:
    path = resolve(config, uri)
    if path.is_dir():
        relative = [str(file.relative_to(path)) for file in _below(path, ())]
        if not relative:
            text = f"{uri}: no data file in this folder; {ALLOWED_KINDS}"
            raise TrainerError(ExitCode.INPUT_MISSING, text)
        return [_file(config, f"{uri}/{name}") for name in sorted(relative)]
    if path.exists():
        return [_file(config, uri)]
    if glob.has_magic(uri):
        return _matches(config, uri)
    raise TrainerError(
        ExitCode.INPUT_MISSING,
        f"{uri}: no such file on the claim; check the path, or copy the file there",
    )


def _matches(config: RunConfig, uri: str) -> list[SourceFile]:
    parts = uri.removeprefix("pvc://").split("/")
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    folder = "pvc://" + "/".join(parts[:first])
    # The claim itself is no address, but it may be where a glob begins.
    root = Path(config.mounts[parts[0]]) if first == 1 else resolve(config, folder)
    pattern = "/".join(parts[first:])
    found = glob.glob(pattern, root_dir=root, recursive=True)
    names = sorted(name for name in found if (root / name).is_file())
    if not names:
        text = f"{uri}: the glob matches no file; check it, or copy the files there"
        raise TrainerError(ExitCode.INPUT_MISSING, text)
    return [_file(config, f"{folder}/{name}") for name in names]


def _below(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Data files, not hidden; a link that leads back to a folder above is not followed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            if not path.name.startswith("."):
                yield from _below(path, (*above, here))
        elif is_data(path.name):
            yield path


def _file(config: RunConfig, name: str) -> SourceFile:
    path = resolve(config, name)
    if not kind_of(path):
        raise unknown_kind(path, name)
    return SourceFile(path, name)
