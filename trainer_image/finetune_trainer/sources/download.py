"""Downloads files in parallel: resumed when interrupted, checked, renamed when complete.

A downloaded folder of the cache exists under its name only when it is complete: it is built under
another name and renamed. The unfinished folder carries the job's uid: the same job continues where
a killed pod stopped, and two jobs that download the same files do not write into each other's (both
download, one of the two folders is kept). A request that fails is tried again some times, then the
next attempt tries again.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.reporter import Reporter
from finetune_trainer.run_dir.files import sync_folder, sync_tree, take_place, unfinished
from finetune_trainer.run_dir.paths import Cache
from finetune_trainer.sources.listing import Remote, RemoteFile

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # s between tries without progress
_FILES_AT_ONCE = 4
_LOG_INTERVAL = 5.0  # s
_READ = 1 << 22  # bytes, when contents are checked
_PART = ".part"
_DAMAGED_LIMIT = 2  # times that a file is downloaded again because its contents were wrong
_FULL = (errno.ENOSPC, errno.EDQUOT)


class InterruptedTransferError(Exception):
    """A request failed in a way that a retry may cure. The text contains no secret."""


def with_retries(address: str, request: Callable[[], Answer]) -> Answer:
    """Return the answer to a request; TrainerError 78 (retryable) if all tries fail."""
    retries = Retries(address)
    while True:
        try:
            return request()
        except InterruptedTransferError as error:
            retries.failed(error)


class Retries:
    """A count of consecutive failures: each failure waits, the last one raises."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waits: Iterator[float] = iter(WAITS)

    def succeeded(self) -> None:
        """Reset the count: the transfer made progress."""
        self._waits = iter(WAITS)

    def failed(self, error: InterruptedTransferError) -> None:
        """Wait before the next try; TrainerError 78 if there are no tries left."""
        wait = next(self._waits, None)
        if wait is None:
            raise unreachable(self._address, error) from error
        _log.warning("%s: %s; trying again in %.0f s", self._address, error, wait)
        time.sleep(wait)


def unreachable(address: str, error: InterruptedTransferError) -> TrainerError:
    """Return the error after the last try. The next attempt may succeed."""
    return TrainerError(
        ExitCode.ENVIRONMENT_UNUSABLE,
        f"{address}: cannot be reached ({error}); check the network of the pod (network policy, "
        "proxy, HF_ENDPOINT or AWS_ENDPOINT_URL); what was downloaded is kept",
        reason=reasons.NETWORK_TROUBLE,
    )


def download(
    remote: Remote, wanted: list[RemoteFile], folder: Path, cache_name: str, report: Reporter
) -> None:
    """Download files into a folder; those that are already there completely are kept.

    TrainerError 73 if there is not enough room for all of them, 78 (retryable) if the network or
    the store keeps failing.
    """
    _check_names(remote, wanted)
    _check_room(remote, wanted, folder, cache_name)
    meter = Meter(remote.address, sum(file.size for file in wanted), report)
    with _pool() as (pool, stop):
        tasks = [
            pool.submit(_download_file, remote, file, folder / file.name, meter, stop)
            for file in sorted(wanted, key=lambda file: -file.size)
        ]
        done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
        for task in done:
            task.result()
    meter.close()


class Meter:
    """The progress of a download, for the log and the supervisor. Used by several threads."""

    def __init__(self, address: str, total: int, report: Reporter) -> None:
        self._address, self._total, self._report = address, total, report
        self._have = self._received = 0
        self._began = self._logged = time.monotonic()
        self._lock = threading.Lock()

    def found(self, size: int) -> None:
        """Count bytes that were already there; a negative size takes back damaged ones."""
        with self._lock:
            self._have += size

    def received(self, size: int) -> None:
        """Count received bytes."""
        with self._lock:
            self._have += size
            self._received += size
            self._report.advance(size)
            if time.monotonic() - self._logged > _LOG_INTERVAL:
                self._logged = time.monotonic()
                self._log()

    def checked(self) -> None:
        """Report activity: some bytes were read back and compared."""
        with self._lock:
            self._report.advance()

    def close(self) -> None:
        """Log the end of the download."""
        with self._lock:
            self._log()

    def _log(self) -> None:
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
    """Give threads that end soon after one of them fails or this process is asked to stop."""
    stop = threading.Event()
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        try:
            yield pool, stop
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _download_file(
    remote: Remote, file: RemoteFile, target: Path, meter: Meter, stop: threading.Event
) -> None:
    if target.is_file() and target.stat().st_size == file.size:
        meter.found(file.size)
        return
    partial = target.with_name(target.name + _PART)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.touch()
    meter.found(partial.stat().st_size)
    retries, damaged = Retries(f"{remote.address}: {file.name}"), 0
    while not stop.is_set():
        try:
            _receive(remote, file, partial, meter, retries, stop)
        except InterruptedTransferError as error:
            if not stop.is_set():
                retries.failed(error)
            continue
        if stop.is_set():
            return
        if _is_intact(file, partial, meter):
            partial.rename(target)
            return
        meter.found(-partial.stat().st_size)
        partial.unlink()
        partial.touch()
        damaged += 1
        if damaged > _DAMAGED_LIMIT:
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"{remote.address}: {file.name}: the received contents do not match the checksum "
                f"of the store (sha256 {file.sha256}); check whether a proxy changes them",
                reason=reasons.DAMAGED_DOWNLOAD,
            )
        _log.warning("%s: %s arrived damaged; downloading it again", remote.address, file.name)


def _receive(
    remote: Remote,
    file: RemoteFile,
    partial: Path,
    meter: Meter,
    retries: Retries,
    stop: threading.Event,
) -> None:
    """Write the missing bytes of a file, or as many as arrive before `stop` is set.

    NB: the file is not opened for appending, because a pod of this job that is believed dead may
    still write. Both write the same bytes at the same offsets, and the checksum decides.
    """
    with partial.open("r+b") as out:
        have = out.seek(0, os.SEEK_END)
        if have < file.size:
            for chunk in remote.read(file, have):
                out.write(chunk)
                have += len(chunk)
                meter.received(len(chunk))
                retries.succeeded()
                if stop.is_set():
                    return
        if have < file.size:
            raise InterruptedTransferError(f"ended after {have} of {file.size} bytes")


def _is_intact(file: RemoteFile, partial: Path, meter: Meter) -> bool:
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
    """Check that names are paths below the folder; stores allow other names for objects."""
    for file in wanted:
        parts = file.name.split("/")
        if not all(parts) or ".." in parts or "." in parts:
            raise TrainerError(
                ExitCode.BAD_CONFIGURATION,
                f"{remote.address}: {file.name!r} is not a valid file name; rename the object",
            )


def _check_room(remote: Remote, wanted: list[RemoteFile], folder: Path, cache_name: str) -> None:
    """Check before the download that there is room for all files."""
    needed = sum(file.size - _have(folder / file.name, file.size) for file in wanted)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TrainerError(
            ExitCode.STORAGE_NOT_WRITABLE,
            f"{cache_name}: {remote.address} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB "
            "are free; make room, or name another cache",
        )


def _have(target: Path, size: int) -> int:
    """Return how many bytes of a file an earlier try has downloaded."""
    for path in (target, target.with_name(target.name + _PART)):
        if path.exists():
            return min(size, path.stat().st_size)
    return 0


@dataclass(frozen=True)
class Downloads:
    """The downloads of one job into its cache."""

    cache: Cache
    job_uid: str
    report: Reporter

    def provide(self, target: Path, fill: Callable[[Path], None]) -> Path:
        """Return `target`, a folder below the cache, after `fill` has filled it if necessary.

        `fill` gets the unfinished folder with what an earlier try left in it. TrainerError 73 if
        the cache cannot be written; what was downloaded is kept for the next try.
        """
        if target.is_dir():
            _log.info("already downloaded: %s", target)
            return target
        own = f".downloading-{self.job_uid}-"
        partial = target.parent / f"{own}{target.name}"
        try:
            _remove_abandoned(target.parent, own)
            partial.mkdir(parents=True, exist_ok=True)
            fill(partial)
            sync_tree(partial)
            if not take_place(partial, target):  # another job has downloaded the same meanwhile
                shutil.rmtree(partial, ignore_errors=True)
            sync_folder(target.parent)
        except OSError as error:
            raise TrainerError(
                ExitCode.STORAGE_NOT_WRITABLE,
                f"{self.cache.uri}: "
                + (
                    "no space is left for a download; make room, or name another cache"
                    if error.errno in _FULL
                    else f"a download cannot be written ({error.strerror or error})"
                ),
            ) from error
        return target


def _remove_abandoned(parent: Path, own: str) -> None:
    for partial, abandoned in unfinished(parent, ".downloading-*"):
        if abandoned and not partial.name.startswith(own):
            shutil.rmtree(partial, ignore_errors=True)
