"""`kubectl finetune logs`: one worker's log, followed through restarts of the gang."""

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from finetune_cli.cluster import Cluster
from finetune_cli.errors import AwayError, MissingError
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
    """Everything once, also when the stream is cut: the next one skips what was shown."""
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    query: Object = {"timestamps": True} if options.timestamps else {}
    shown = 0
    if options.tail is not None:
        # Taken here and not by the node, so that it is known where the rest begins.
        whole = b"".join(cluster.log(name, **query))
        _write(b"".join(whole.splitlines(keepends=True)[-options.tail or len(whole) :]))
        shown = len(whole)
    while options.follow or options.tail is None:
        try:
            shown += _copy(cluster.log(name, follow=options.follow, **query), skip=shown)
            if not options.follow or _ended(cluster, name, uid):
                return
        except MissingError:
            return
        except AwayError as error:
            if not options.follow:
                raise
            _say(f"{error}; trying again")
        time.sleep(_INTERVAL)


def _copy(chunks: Iterable[bytes], *, skip: int) -> int:
    """Write what comes after the first `skip` bytes; how many those were."""
    written = 0
    for chunk in chunks:
        new = chunk[skip:]
        skip = max(0, skip - len(chunk))
        _write(new)
        written += len(new)
    return written


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
