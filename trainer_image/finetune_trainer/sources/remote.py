"""Inputs that do not lie on a claim: downloaded once, into the cache, by the prepare pod.

`model_folder` and `files` are all that others use. Afterwards everything is local: workers get no
credentials and open no connection.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from finetune_api.run import RunConfig
from finetune_api.spec import DataSource
from finetune_api.uri import HubPath, ObjectPath, parse
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.run_dir import digest
from finetune_trainer.run_dir.paths import cache_folder, cache_name, cached_model
from finetune_trainer.sources.download import fetch, into_cache
from finetune_trainer.sources.listing import (
    Remote,
    RemoteFile,
    data_files,
    fixed_part,
    is_glob,
    missing,
    safetensors,
    texts_of_model,
    weights_of_model,
)

__all__ = ["files", "model_folder"]
_INDEX = ".index.json"
_found: dict[tuple[Path, str], list[tuple[Path, str]]] = {}


def model_folder(config: RunConfig, report: Reporter) -> tuple[Path, str]:
    """Folder of the model in the cache, and what its address was resolved to.

    That is the commit for hf://, a digest of names, sizes and ETags for s3:// and gs://.
    TrainerError: 66 not there, 77 not permitted, 73 cache not writable, 78 (retryable) network.
    """
    from finetune_trainer.sources.hub import HubFolder

    address = parse(config.model.source)
    if isinstance(address, HubPath):
        hub = HubFolder.resolve(address, "model", config.model.revision)
        return _model(config, hub, None, hub.commit, report), hub.commit
    from finetune_trainer.sources.objects import ObjectFolder, revision_of

    assert isinstance(address, ObjectPath)
    folder = ObjectFolder(address, address.key)
    listed = folder.files()
    if not listed:
        raise missing(f"{address}: no object below it", "check bucket and key")
    # Of what belongs to a model: a log that grows beside it makes no other one.
    revision = revision_of([*texts_of_model(listed), *safetensors(listed)])
    return _model(config, folder, listed, revision, report), revision


def _model(
    config: RunConfig,
    remote: Remote,
    listed: list[RemoteFile] | None,
    revision: str,
    report: Reporter,
) -> Path:
    name = cache_name(config)

    def fill(folder: Path) -> None:
        there = listed or remote.files()
        fetch(remote, texts_of_model(there), folder, name, report)
        weights = weights_of_model(there, folder, remote.address)
        fetch(remote, weights, folder, name, report)

    return into_cache(cached_model(config, revision), config.job_uid, name, fill)


def files(config: RunConfig, source: DataSource, report: Reporter) -> list[tuple[Path, str]]:
    """Local copies of the files of a source, each with the address that people know it by.

    The order is always the same; the last part of a path is the file's own name. Asked again, the
    same process gets the same answer: a branch may move meanwhile, and objects may be replaced.
    TrainerError as above.
    """
    key = (cache_folder(config), source.to_json())
    if key not in _found:
        address = parse(source.source)
        if isinstance(address, HubPath):
            _found[key] = _hub_files(config, source, address, report)
        else:
            assert isinstance(address, ObjectPath)
            _found[key] = _object_files(config, address, report)
    return _found[key]


def _hub_files(
    config: RunConfig, source: DataSource, address: HubPath, report: Reporter
) -> list[tuple[Path, str]]:
    from finetune_trainer.sources.hub import HubFolder
    from finetune_trainer.sources.splits import files_of

    # Files keep their names in the repository, so that a glob is one of whole paths.
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
            raise missing(
                f"{address}: its split {split!r} is made of {elsewhere[0]}, which is not in the "
                "repository",
                "name files (hf://ORG/NAME/PATH)",
            )
        return [there[name] for name in names]

    return _data(config, hub, key, wanted, f"hf://{address.repository}", report)


def _object_files(
    config: RunConfig, address: ObjectPath, report: Reporter
) -> list[tuple[Path, str]]:
    from finetune_trainer.sources.objects import ObjectFolder, revision_of

    parent = fixed_part(address.key) if is_glob(address.key) else address.key.rpartition("/")[0]
    name = address.key.removeprefix(parent).lstrip("/")
    folder = ObjectFolder(address, parent)
    # Not by listing the parent: it may hold millions.
    one = None if is_glob(address.key) else folder.find(name)
    if one is None and not is_glob(address.key):
        folder, name = ObjectFolder(address, address.key), ""
    found = [one] if one else data_files(folder.files(), name, str(address))
    key = digest.of_value([address.bucket, revision_of(found)])
    base = "/".join(
        part for part in (f"{address.scheme}://{address.bucket}", folder.prefix) if part
    )
    return _data(config, folder, key, lambda _: found, base, report)


def _data(
    config: RunConfig,
    remote: Remote,
    key: str,
    wanted: Callable[[Path], list[RemoteFile]],
    base: str,
    report: Reporter,
) -> list[tuple[Path, str]]:
    """Downloads into `<cache>/data/<key>`; an index beside the files keeps their order."""
    target, name = cache_folder(config) / "data" / key, cache_name(config)

    def fill(folder: Path) -> None:
        scratch = folder / ".scratch"
        found = wanted(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
        fetch(remote, found, folder, name, report)
        (folder / _INDEX).write_text(json.dumps([file.name for file in found]))

    folder = into_cache(target, config.job_uid, name, fill)
    names = json.loads((folder / _INDEX).read_text())
    return [(folder / name, f"{base}/{name}") for name in names]
