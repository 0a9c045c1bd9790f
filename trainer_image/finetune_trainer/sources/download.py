"""Downloads into the cache: resumable, checked, and there only when whole.

A folder of the cache is built under another name and renamed, so whoever sees it sees all of it.
The unfinished one carries the job's uid: the same job goes on where a killed pod stopped, and two
jobs that want the same thing do not write into each other's files (both download, one wins).
"""

import errno
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.run_dir.files import sync_folder, sync_tree, take_place, unfinished
from finetune_trainer.sources.listing import Remote, RemoteFile
from finetune_trainer.sources.network import InterruptedTransferError, Tries

_log = logging.getLogger(__name__)
_FILES_AT_ONCE = 4
_SAY_EVERY = 5.0  # s
_READ = 1 << 22  # bytes, when contents are checked
_PART = ".part"
_DAMAGED = 2  # times that a file may arrive with wrong contents and be downloaded again
_FULL = (errno.ENOSPC, errno.EDQUOT)


def into_cache(target: Path, job_uid: str, cache_name: str, fill: Callable[[Path], None]) -> Path:
    """`target`, a folder that `fill` has filled now or somebody before.

    `fill` is given the unfinished folder, with whatever an earlier try left in it. TrainerError 73
    when the cache cannot be written; what was downloaded is kept for the next try.
    """
    if target.is_dir():
        _log.info("downloaded before: %s", target)
        return target
    mine = f".downloading-{job_uid}-"
    partial = target.parent / f"{mine}{target.name}"
    try:
        _remove_abandoned(target.parent, mine)
        partial.mkdir(parents=True, exist_ok=True)
        fill(partial)
        sync_tree(partial)
        if not take_place(partial, target):  # another job downloaded the same meanwhile
            shutil.rmtree(partial, ignore_errors=True)
        sync_folder(target.parent)
    except OSError as error:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE,
            f"{cache_name}: "
            + (
                "no space is left for a download; make room, or name another cache"
                if error.errno in _FULL
                else f"a download cannot be written ({error.strerror or error})"
            ),
        ) from error
    return target


def fetch(
    remote: Remote, wanted: list[RemoteFile], folder: Path, cache_name: str, report: Reporter
) -> None:
    """Download files into a folder; those that lie there whole already are left alone.

    TrainerError 73 when there is not enough room for all of them, 78 (retryable) when the network
    or the store keeps failing.
    """
    _check_names(remote, wanted)
    _check_room(remote, wanted, folder, cache_name)
    meter = Meter(remote.address, sum(file.size for file in wanted), report)
    with _pool() as (pool, stop):
        tasks = [
            pool.submit(_one, remote, file, folder / file.name, meter, stop)
            for file in sorted(wanted, key=lambda file: -file.size)
        ]
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in done:
            task.result()
    meter.close()


class Meter:
    """Tells people and the supervisor how a download moves; used by several threads."""

    def __init__(self, address: str, total: int, report: Reporter) -> None:
        self._address, self._total, self._report = address, total, report
        self._have = self._received = 0
        self._began = self._said = time.monotonic()
        self._lock = threading.Lock()

    def found(self, size: int) -> None:
        """So many bytes were there already; negative: they turned out to be wrong."""
        with self._lock:
            self._have += size

    def received(self, size: int) -> None:
        """So many bytes came in."""
        with self._lock:
            self._have += size
            self._received += size
            self._report.advance(size)
            if time.monotonic() - self._said > _SAY_EVERY:
                self._said = time.monotonic()
                self._say()

    def checked(self) -> None:
        """Some bytes were read back and compared."""
        with self._lock:
            self._report.advance()

    def close(self) -> None:
        """Say the end of it."""
        with self._lock:
            self._say()

    def _say(self) -> None:
        rate = self._received / max(1e-3, time.monotonic() - self._began)
        share = 100 * self._have // self._total if self._total else 100
        left = (self._total - self._have) / rate if rate else 0
        _log.info(
            "%s: %d %% of %.1f MB, %.1f MB/s%s",
            self._address,
            share,
            self._total / 1e6,
            rate / 1e6,
            f", about {left:.0f} s left" if share < 100 else "",
        )


@contextmanager
def _pool() -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that end soon when one of them fails, or when this process is told to stop."""
    stop = threading.Event()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        try:
            yield pool, stop
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _one(
    remote: Remote, file: RemoteFile, target: Path, meter: Meter, stop: threading.Event
) -> None:
    if target.is_file() and target.stat().st_size == file.size:
        meter.found(file.size)
        return
    partial = target.with_name(target.name + _PART)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    meter.found(partial.stat().st_size)
    tries, damaged = Tries(f"{remote.address}: {file.name}"), 0
    while not stop.is_set():
        try:
            _receive(remote, file, partial, meter, tries, stop)
        except InterruptedTransferError as error:
            if not stop.is_set():
                tries.failed(error)
            continue
        if stop.is_set():
            return
        if _is_whole(file, partial, meter):
            partial.rename(target)
            return
        meter.found(-partial.stat().st_size)
        partial.unlink()
        partial.touch()
        damaged += 1
        if damaged > _DAMAGED:
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"{remote.address}: {file.name}: what comes is not what the store says it has "
                f"(sha256 {file.sha256}); a proxy may be in between",
                reason="DamagedDownload",
            )
        _log.warning("%s: %s arrived damaged; downloading it again", remote.address, file.name)


def _receive(
    remote: Remote,
    file: RemoteFile,
    partial: Path,
    meter: Meter,
    tries: Tries,
    stop: threading.Event,
) -> None:
    """Write what is missing, or until `stop`.

    NB: not opened for appending: a pod of this job that is believed dead may still write. Each
    puts the same bytes in the same places, and the checksum has the last word.
    """
    with partial.open("r+b") as out:
        have = out.seek(0, os.SEEK_END)
        if have < file.size:
            for chunk in remote.read(file, have):
                out.write(chunk)
                meter.received(len(chunk))
                tries.succeeded()
                if stop.is_set():
                    return
        if out.tell() < file.size:
            raise InterruptedTransferError(f"ended after {out.tell()} of {file.size} bytes")


def _is_whole(file: RemoteFile, partial: Path, meter: Meter) -> bool:
    if partial.stat().st_size != file.size:
        return False
    return file.sha256 is None or file.sha256 == _sha256(partial, meter)


def _sha256(path: Path, meter: Meter) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(_READ):
            digest.update(block)
            meter.checked()
    return digest.hexdigest()


def _check_names(remote: Remote, wanted: list[RemoteFile]) -> None:
    """A name is a path below the folder, whatever a store calls its objects."""
    for file in wanted:
        parts = file.name.split("/")
        if not all(parts) or ".." in parts or "." in parts:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{remote.address}: {file.name!r} is no name that a file may have; rename it",
            )


def _check_room(remote: Remote, wanted: list[RemoteFile], folder: Path, cache_name: str) -> None:
    """Before the download, for all of it."""
    needed = sum(file.size - _have(folder / file.name, file.size) for file in wanted)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE,
            f"{cache_name}: {remote.address} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB "
            "are free; make room, or name another cache",
        )


def _have(target: Path, size: int) -> int:
    for path in (target, target.with_name(target.name + _PART)):
        if path.exists():
            return min(size, path.stat().st_size)
    return 0


def _remove_abandoned(parent: Path, mine: str) -> None:
    for partial, abandoned in unfinished(parent, ".downloading-*"):
        if abandoned and not partial.name.startswith(mine):
            shutil.rmtree(partial, ignore_errors=True)
