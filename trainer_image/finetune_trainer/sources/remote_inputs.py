"""Inputs that are not on a claim: downloaded once, into the cache, by the prepare pod.

Afterwards everything is local: workers get no credentials and open no connection.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from finetune_api.spec import DataSource, Model
from finetune_api.uri import HubPath, ObjectPath, parse
from finetune_trainer.data.source_file import SourceFile
from finetune_trainer.run_dir import digest
from finetune_trainer.sources.download import download
from finetune_trainer.sources.downloads import Downloads
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

_INDEX = ".index.json"


def download_model(model: Model, downloads: Downloads) -> tuple[Path, str]:
    """Return the model's folder in the cache and the revision that its address was resolved to.

    The revision is the commit for hf://, a digest of names, sizes and ETags for s3:// and gs://.
    TrainerError: 66 not found, 77 not permitted, 73 cache not writable, 78 (retryable) network.
    """
    from finetune_trainer.sources.hub import HubFolder

    address = parse(model.source)
    if isinstance(address, HubPath):
        hub = HubFolder.resolve(address, "model", model.revision)
        return _model(downloads, hub.commit, model, hub, hub.files), hub.commit
    from finetune_trainer.sources.objects import ObjectFolder, revision_of

    assert isinstance(address, ObjectPath)
    objects = ObjectFolder(address, address.key)
    listed = objects.files()
    if not listed:
        raise input_missing(f"{address}: no object below it", "check bucket and key")
    # Only the files of the model: a log that grows beside them does not make it another model.
    revision = revision_of([*model_text_files(listed), *safetensors_files(listed)])
    return _model(downloads, revision, model, objects, lambda: listed), revision


def _model(
    downloads: Downloads,
    revision: str,
    model: Model,
    remote: Remote,
    listed: Callable[[], list[RemoteFile]],
) -> Path:
    cache, report = downloads.cache, downloads.report

    def fill(folder: Path) -> None:
        there = listed()
        download(remote, model_text_files(there), folder, cache.uri, report)
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
    key = digest.of_value([address.repository, hub.commit, address.path, split])

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
    key = digest.of_value([address.bucket, revision_of(found)])
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
        (folder / _INDEX).write_text(json.dumps([file.name for file in found]))

    folder = downloads.provide(cache.folder / "data" / key, fill)
    names = json.loads((folder / _INDEX).read_text())
    return [SourceFile(folder / name, f"{base}/{name}") for name in names]
