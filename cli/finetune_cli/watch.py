"""`kubectl finetune watch`: shows a job until it has finished.

It polls once a second instead of opening a watch: small requests need no recovery from interrupted
streams and expired resource versions, and show the same.
"""

import sys
import time
from dataclasses import replace
from datetime import UTC, datetime

from rich.console import Console
from rich.live import Live

from finetune_api.base import Object
from finetune_cli import view
from finetune_cli.cluster import Cluster
from finetune_cli.errors import AwayError, CliError, ForbiddenError, NoSuchJobError
from finetune_cli.view import Snapshot

_INTERVAL = 1.0  # s


def run(cluster: Cluster, name: str) -> int:
    """Show a job until it has finished; return 0 if it succeeded and 1 if it failed.

    Raises CliError if the job cannot be read.
    """
    poll = _Poller(cluster, name)
    first = poll(None)
    final = _live(poll, first) if sys.stdout.isatty() else _lines(poll, first)
    print("\n".join(view.result(final)), flush=True)
    return 0 if final.status.phase == "Succeeded" else 1


class _Poller:
    """Takes snapshots of one job."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._events_permitted = True

    def __call__(self, before: Snapshot | None) -> Snapshot:
        """Return a new snapshot, or the old one with a note while the API server is down."""
        now = datetime.now(UTC)
        try:
            job = self._cluster.job(self._name)
            snapshot = Snapshot.of(job, self._events(job["metadata"]["uid"]), now)
        except AwayError as error:
            if before is None:
                raise
            return replace(before, now=now, note=f"{error}; retrying")
        except NoSuchJobError:
            if before is None:
                raise
            job_name = f"{before.namespace}/{before.name}"
            raise CliError(f"{job_name} was deleted while it was watched") from None
        if before and snapshot.created != before.created:
            job_name = f"{before.namespace}/{before.name}"
            raise CliError(f"{job_name} was deleted and created again; run the command again")
        return snapshot

    def _events(self, uid: str) -> list[Object]:
        if not self._events_permitted:
            return []
        try:
            return self._cluster.events(uid)
        except ForbiddenError as error:
            self._events_permitted = False
            print(f"{error}; continuing without events", file=sys.stderr, flush=True)
            return []


def _live(poll: _Poller, snapshot: Snapshot) -> Snapshot:
    console = Console()
    with Live(view.panel(snapshot), console=console, refresh_per_second=4, transient=True) as live:
        while not snapshot.status.finished:
            time.sleep(_INTERVAL)
            snapshot = poll(snapshot)
            live.update(view.panel(snapshot))
    return snapshot


def _lines(poll: _Poller, snapshot: Snapshot) -> Snapshot:
    before: Snapshot | None = None
    while True:
        for line in view.plain(before, snapshot):
            print(line, flush=True)
        if snapshot.status.finished:
            return snapshot
        time.sleep(_INTERVAL)
        before, snapshot = snapshot, poll(snapshot)
