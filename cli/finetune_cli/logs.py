"""`kubectl finetune logs`: one worker's log, followed through restarts of the gang."""

import sys
import time
from dataclasses import dataclass, replace

from finetune_api.base import Object
from finetune_cli.cluster import Cluster
from finetune_cli.errors import AwayError, MissingError
from finetune_cli.select import Wanted, pick, state

_INTERVAL = 1.0  # s
_END = 4096  # bytes


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
        try:
            status = cluster.job(name).get("status") or {}
            pods = cluster.pods(uid)
        except AwayError as error:
            if not follow:
                raise
            if said != "away":
                _say(f"{error}; trying again")
            said = "away"
            time.sleep(_INTERVAL)
            continue
        if shown is not None and status.get("phase") in ("Succeeded", "Failed"):
            return None
        pod = pick(pods, wanted, status, name)
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
    """Everything once, also when the stream is cut."""
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    query: Object = {"timestamps": True} if options.timestamps else {}

    def whole() -> bytes:
        return b"".join(cluster.log(name, **query))

    shown, cut = Shown(), False
    if options.tail is not None:
        # Taken here and not by the node, so that it is known where the rest begins.
        text = whole()
        _write(b"".join(text.splitlines(keepends=True)[-options.tail or len(text) :]))
        if not options.follow:
            return
        shown.add(text)
    while True:
        try:
            if cut:
                text = whole()
                _write(shown.rest(text))
                shown = Shown()
                shown.add(text)
            skip = shown.size
            for chunk in cluster.log(name, follow=options.follow, **query):
                new = chunk[skip:]
                skip = max(0, skip - len(chunk))
                _write(new)
                shown.add(new)
            if not options.follow or _ended(cluster, name, uid):
                return
        except MissingError:
            return
        except AwayError as error:
            if not options.follow:
                raise
            _say(f"{error}; trying again")
        cut = True
        time.sleep(_INTERVAL)


@dataclass
class Shown:
    """What was printed of a log: how much, and the end of it, to find the place again."""

    size: int = 0
    end: bytes = b""

    def add(self, text: bytes) -> None:
        """More was printed."""
        self.size += len(text)
        self.end = (self.end + text)[-_END:]

    def rest(self, text: bytes) -> bytes:
        """What of the log as it is now was not printed.

        Nodes rotate logs: they then know a part of it only, which may begin anywhere.
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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
