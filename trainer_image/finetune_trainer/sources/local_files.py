"""Local files for the address of a model or of a source of data.

Files on a claim are used where they are. All others are downloaded once, into the cache, by the
prepare pod. Afterwards everything is local: workers get no credentials and open no connection.
"""

import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_api.spec import DataSource, Model
from finetune_api.uri import HubPath, ObjectPath, is_claim, parse
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.data.source_file import (
    ALLOWED_KINDS,
    SourceFile,
    is_data,
    kind_of,
    unknown_kind,
)
from finetune_trainer.run_dir.files import value_digest
from finetune_trainer.run_dir.paths import claim_file, claim_path
from finetune_trainer.sources.download import Downloads, download
from finetune_trainer.sources.listing import (
    Remote,
    RemoteFile,
    data_files,
    fixed_part,
    input_missing,
    is_glob,
    model_text_files,
    model_weight_files,
    safetensors_files,
)

_INDEX_FILE = ".index.json"


def source_files(
    source: DataSource, mounts: dict[str, str], downloads: Downloads
) -> list[SourceFile]:
    """Return the files of a source, sorted by name, all of one type.

    `mounts` maps the name of a claim to its path in this pod. TrainerError: 66 no file, 64 a link
    leads out of the claim, 65 several types of files, and the errors of a download.
    """
    if is_claim(source.source):
        found = _files_on_claim(mounts, source.source.rstrip("/"))
    else:
        found = download_data(source, downloads)
    for _ in found:
        downloads.report.advance()
    kinds = sorted({kind_of(file.path) for file in found})
    if len(kinds) > 1:
        raise TrainerError(
            ExitCode.BAD_DATA,
            f"{source.source}: files of several types ({', '.join(kinds)}); a source must have one "
            "type: narrow it with a glob, and add a source for each other type",
        )
    return found


def _files_on_claim(mounts: dict[str, str], uri: str) -> list[SourceFile]:
    """Return the file, every data file below the folder, or what the glob matches; sorted by name.

    `mounts` maps the name of a claim to its path in this pod. Hidden files are skipped below a
    folder. TrainerError: 66 no file, 64 a link that leads out of the claim, or a named
    pipe, 65 unknown type of file.
    """
    path = claim_path(uri, mounts)
    if path.is_dir():
        relative = [str(file.relative_to(path)) for file in _data_below(path, ())]
        if not relative:
            text = f"{uri}: no data file in this folder; {ALLOWED_KINDS}"
            raise TrainerError(ExitCode.INPUT_MISSING, text)
        return [_file(mounts, f"{uri}/{name}") for name in sorted(relative)]
    if os.path.lexists(path):
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
    names = sorted(name for name in found if not (root / name).is_dir())
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
    path = claim_file(name, mounts)
    if not kind_of(path):
        raise unknown_kind(path, name)
    return SourceFile(path, name)


def download_model(
    model: Model, downloads: Downloads, check: Callable[[Path], None]
) -> tuple[Path, str]:
    """Return the model's folder in the cache and the revision that its address was resolved to.

    `check` is called with the folder once all files but the weights are there; a model that it
    refuses is not downloaded further.

    The revision is the commit for hf://, a digest of names, sizes and ETags for s3:// and gs://.
    TrainerError: 66 not found, 77 not permitted, 73 cache not writable, 78 (retryable) network.
    """
    from finetune_trainer.sources.hub import HubFolder

    address = parse(model.source)
    if isinstance(address, HubPath):
        hub = HubFolder.resolve(address, "model", model.revision)
        return _model(downloads, hub.commit, model, hub, hub.files, check), hub.commit
    from finetune_trainer.sources.objects import ObjectFolder, revision_of

    assert isinstance(address, ObjectPath)
    objects = ObjectFolder(address, address.key)
    listed = objects.files()
    if not listed:
        raise input_missing(f"{address}: no object below it", "check bucket and key")
    # Only the files of the model: a log that grows beside them does not make it another model.
    revision = revision_of([*model_text_files(listed), *safetensors_files(listed)])
    return _model(downloads, revision, model, objects, lambda: listed, check), revision


def _model(
    downloads: Downloads,
    revision: str,
    model: Model,
    remote: Remote,
    listed: Callable[[], list[RemoteFile]],
    check: Callable[[Path], None],
) -> Path:
    cache, report = downloads.cache, downloads.report

    def fill(folder: Path) -> None:
        there = listed()
        download(remote, model_text_files(there), folder, cache.uri, report)
        check(folder)
        weights = model_weight_files(there, folder, remote.address)
        download(remote, weights, folder, cache.uri, report)

    return downloads.provide(cache.model(model.source, revision), fill)


def download_data(source: DataSource, downloads: Downloads) -> list[SourceFile]:
    """Return local copies of the files of a source, each with its address as its name.

    The order is always the same; the last part of a path is the name of the original file.
    Raises the same errors as `download_model`.
    """
    address = parse(source.source)
    if isinstance(address, HubPath):
        return _hub_files(source, address, downloads)
    assert isinstance(address, ObjectPath)
    return _object_files(address, downloads)


def _hub_files(source: DataSource, address: HubPath, downloads: Downloads) -> list[SourceFile]:
    from finetune_trainer.sources.hub import HubFolder
    from finetune_trainer.sources.splits import files_of

    # Files keep their names in the repository, because a glob matches complete paths.
    repository = HubPath(address.repository, "")
    hub = HubFolder.resolve(repository, "dataset", source.revision)
    split = None if address.path else source.split or "train"
    key = value_digest([address.repository, hub.commit, address.path, split])

    def wanted(scratch: Path) -> list[RemoteFile]:
        if split is None:
            return data_files(hub.files(), address.path, str(address))
        names = files_of(address, hub.commit, split, scratch)
        there = {file.name: file for file in hub.files()}
        if elsewhere := [name for name in names if name not in there]:
            raise input_missing(
                f"{address}: its split {split!r} is made of {elsewhere[0]}, which is not in the "
                "repository",
                "name files (hf://ORG/NAME/PATH)",
            )
        return [there[name] for name in names]

    return _data(downloads, key, hub, wanted, f"hf://{address.repository}")


def _object_files(address: ObjectPath, downloads: Downloads) -> list[SourceFile]:
    from finetune_trainer.sources.objects import ObjectFolder, revision_of

    parent = fixed_part(address.key) if is_glob(address.key) else address.key.rpartition("/")[0]
    name = address.key.removeprefix(parent).lstrip("/")
    folder = ObjectFolder(address, parent)
    # A single object is not searched in the listing of its parent, which may have millions.
    one = None if is_glob(address.key) else folder.find(name)
    if one is None and not is_glob(address.key):
        folder, name = ObjectFolder(address, address.key), ""
    found = [one] if one else data_files(folder.files(), name, str(address))
    key = value_digest([address.bucket, revision_of(found)])
    base = "/".join(
        part for part in (f"{address.scheme}://{address.bucket}", folder.prefix) if part
    )
    return _data(downloads, key, folder, lambda _: found, base)


def _data(
    downloads: Downloads,
    key: str,
    remote: Remote,
    wanted: Callable[[Path], list[RemoteFile]],
    base: str,
) -> list[SourceFile]:
    """Download into `<cache>/data/<key>`; an index beside the files keeps their order.

    `wanted` gets a scratch folder and returns the files; `base` is the address of the folder.
    """

    cache = downloads.cache

    def fill(folder: Path) -> None:
        scratch = folder / ".scratch"
        found = wanted(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        download(remote, found, folder, cache.uri, downloads.report)
        (folder / _INDEX_FILE).write_text(json.dumps([file.name for file in found]))

    folder = downloads.provide(cache.folder / "data" / key, fill)
    names = json.loads((folder / _INDEX_FILE).read_text())
    return [SourceFile(folder / name, f"{base}/{name}") for name in names]
