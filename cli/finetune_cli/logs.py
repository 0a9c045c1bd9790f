"""`kubectl finetune logs`: prints the log of one worker and follows it through restarts."""

import sys
import time
from dataclasses import dataclass, replace

from finetune_api.base import Object
from finetune_cli.cluster import Cluster
from finetune_cli.errors import AwayError, MissingError
from finetune_cli.select import Selection, pick_pod, state

_INTERVAL = 1.0  # s
_END = 4096  # bytes at the end of what was printed that are remembered


@dataclass(frozen=True)
class Options:
    """How the log is printed."""

    follow: bool = False
    tail: int | None = None
    timestamps: bool = False


def run(cluster: Cluster, name: str, selection: Selection, options: Options) -> int:
    """Print the log to stdout and notes about waiting to stderr; return the exit code."""
    job = cluster.job(name)
    printed: str | None = None  # uid of the pod whose log was printed last
    while True:
        pod = _wait(cluster, name, selection, options.follow, job["metadata"]["uid"], printed)
        if pod is None:
            return 0
        if printed is not None:
            _note(f"--- {pod['metadata']['name']}")
        _print(cluster, pod, options)
        printed = pod["metadata"]["uid"]
        if not options.follow or selection.attempt is not None or selection.prepare:
            return 0
        options = replace(options, tail=None)


def _wait(
    cluster: Cluster, name: str, selection: Selection, follow: bool, uid: str, printed: str | None
) -> Object | None:
    """Return the next pod to print once its container has started, or None if there is no more."""
    noted = ""
    while True:
        try:
            status = cluster.job(name).get("status") or {}
            pods = cluster.pods(uid)
        except AwayError as error:
            if not follow:
                raise
            if noted != "away":
                _note(f"{error}; retrying")
            noted = "away"
            time.sleep(_INTERVAL)
            continue
        if printed is not None and status.get("phase") in ("Succeeded", "Failed"):
            return None
        pod = pick_pod(pods, selection, status, name)
        cause = "its pod does not exist yet" if pod is None else state(pod)
        if pod is not None and not cause.startswith("waiting"):
            if pod["metadata"]["uid"] != printed:
                return pod
            cause = "the next pod does not exist yet"
        if not follow:
            _note(f"no log yet ({cause}); use -f to wait for it")
            return None
        if cause != noted and printed is None:
            _note(f"waiting ({cause})")
            noted = cause
        time.sleep(_INTERVAL)


def _print(cluster: Cluster, pod: Object, options: Options) -> None:
    """Print the log without gaps or repetitions, even if the connection is interrupted."""
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    query: Object = {"timestamps": True} if options.timestamps else {}

    def complete_log() -> bytes:
        return b"".join(cluster.log(name, **query))

    printed, interrupted = Printed(), False
    if options.tail is not None:
        # The tail is taken here and not by the node, so that it is known where the rest begins.
        text = complete_log()
        _write(b"".join(text.splitlines(keepends=True)[-options.tail or len(text) :]))
        if not options.follow:
            return
        printed.add(text)
    while True:
        try:
            if interrupted:
                text = complete_log()
                _write(printed.rest(text))
                printed = Printed()
                printed.add(text)
            skip = printed.size
            for chunk in cluster.log(name, follow=options.follow, **query):
                new = chunk[skip:]
                skip = max(0, skip - len(chunk))
                _write(new)
                printed.add(new)
            if not options.follow or _ended(cluster, name, uid):
                return
        except MissingError:
            return
        except AwayError as error:
            if not options.follow:
                raise
            _note(f"{error}; retrying")
        interrupted = True
        time.sleep(_INTERVAL)


@dataclass
class Printed:
    """How much of a log was printed, and the end of that, by which the position is found again."""

    size: int = 0
    end: bytes = b""

    def add(self, text: bytes) -> None:
        """Record that more was printed."""
        self.size += len(text)
        self.end = (self.end + text)[-_END:]

    def rest(self, text: bytes) -> bytes:
        """Return the part of the current log that was not printed.

        After a rotation the node has only a part of the log, which may begin anywhere.
        """
        if text[: self.size].endswith(self.end) and len(text) >= self.size:
            return text[self.size :]
        if len(self.end) == _END and (at := text.rfind(self.end)) >= 0:
            return text[at + _END :]
        for size in range(len(self.end), 0, -1):
            if text.startswith(self.end[-size:]):
                return text[size:]
        return text


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def _ended(cluster: Cluster, name: str, uid: str) -> bool:
    for pod in cluster.pods_named(name):
        if pod["metadata"]["uid"] == uid:
            return state(pod) == "ended"
    return True


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
