"""`kubectl finetune logs`: one worker's log, followed through restarts of the gang."""

import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from finetune_cli.cluster import AwayError, Cluster, MissingError
from finetune_cli.select import Wanted, pick, state

Object = dict[str, Any]
_INTERVAL = 1.0  # s


@dataclass(frozen=True)
class Options:
    """How to print."""

    follow: bool = False
    tail: int | None = None
    timestamps: bool = False


def run(cluster: Cluster, name: str, wanted: Wanted, options: Options) -> int:
    """Print to stdout; what this command itself has to say goes to stderr."""
    job = cluster.job(name)
    shown: str | None = None
    while True:
        pod = _wait(cluster, name, wanted, options.follow, job["metadata"]["uid"], shown)
        if pod is None:
            return 0
        if shown is not None:
            _say(f"--- {pod['metadata']['name']}")
        _print(cluster, pod, options)
        shown = pod["metadata"]["uid"]
        if not options.follow or wanted.attempt is not None or wanted.prepare:
            return 0
        options = replace(options, tail=None)


def _wait(
    cluster: Cluster, name: str, wanted: Wanted, follow: bool, uid: str, shown: str | None
) -> Object | None:
    """The pod as soon as its container has started; None when nothing more will come."""
    said = ""
    while True:
        job = cluster.job(name)
        status = job.get("status") or {}
        if shown is not None and status.get("phase") in ("Succeeded", "Failed"):
            return None
        pod = pick(cluster.pods(uid), wanted, status, name)
        waits = "its pod does not exist yet" if pod is None else state(pod)
        if pod is not None and not waits.startswith("waiting"):
            if pod["metadata"]["uid"] != shown:
                return pod
            waits = "the next pod does not exist yet"
        if not follow:
            _say(f"no log yet ({waits}); -f waits for it")
            return None
        if waits != said and shown is None:
            _say(f"waiting ({waits})")
            said = waits
        time.sleep(_INTERVAL)


def _print(cluster: Cluster, pod: Object, options: Options) -> None:
    """All lines once, also when the stream is cut: it goes on after the last whole line's time."""
    printer = _Printer(options.timestamps)
    query: Object = {"follow": options.follow, "timestamps": True}
    if options.tail is not None:
        query["tail_lines"] = options.tail
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    while True:
        try:
            for chunk in cluster.log(name, **query):
                printer.feed(chunk)
            if not options.follow or _ended(cluster, name, uid):
                break
        except MissingError:
            break
        except AwayError as error:
            if not options.follow:
                raise
            _say(f"{error}; trying again")
        printer.restart()
        query.pop("tail_lines", None)
        time.sleep(_INTERVAL)
    printer.close()


def _ended(cluster: Cluster, name: str, uid: str) -> bool:
    for pod in cluster.pods_named(name):
        if pod["metadata"]["uid"] == uid:
            return state(pod) == "ended"
    return True


class _Printer:
    """Takes lines with timestamps, prints each once."""

    def __init__(self, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._buffer = b""
        self._newest = b""
        self._seen: set[bytes] = set()
        self._skipping = False

    def feed(self, chunk: bytes) -> None:
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        sys.stdout.flush()

    def restart(self) -> None:
        """A new stream repeats what was shown."""
        self._buffer = b""
        self._skipping = True

    def close(self) -> None:
        if self._buffer:
            self._take(self._buffer)
        self._buffer = b""
        sys.stdout.flush()

    def _take(self, line: bytes) -> None:
        stamp, _, text = line.partition(b" ")
        if self._skipping:
            if stamp < self._newest or (stamp == self._newest and line in self._seen):
                return
            self._skipping = False
        if stamp != self._newest:
            self._newest, self._seen = stamp, set()
        self._seen.add(line)
        shown = line if self._timestamps else text
        sys.stdout.buffer.write(shown + b"\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
