"""`kubectl finetune watch`: looks once a second until the job is finished.

Looking, not a watch connection: one small request a second needs no recovery from cut streams and
expired versions, and shows the same.
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
    """0 when the job succeeded, 1 when it failed; CliError when it cannot be watched."""
    look = _Look(cluster, name)
    first = look(None)
    final = _live(look, first) if sys.stdout.isatty() else _lines(look, first)
    print("\n".join(view.result(final)), flush=True)
    return 0 if final.status.phase == "Succeeded" else 1


class _Look:
    """Takes snapshots of one job."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._events_permitted = True

    def __call__(self, before: Snapshot | None) -> Snapshot:
        """A new snapshot; the old one with a note while the API server is away."""
        now = datetime.now(UTC)
        try:
            job = self._cluster.job(self._name)
            shot = Snapshot.of(job, self._events(job["metadata"]["uid"]), now)
        except AwayError as error:
            if before is None:
                raise
            return replace(before, now=now, note=f"{error}; trying again")
        except NoSuchJobError:
            if before is None:
                raise
            place = f"{before.namespace}/{before.name}"
            raise CliError(f"{place} was deleted while it was watched") from None
        if before and shot.created != before.created:
            place = f"{before.namespace}/{before.name}"
            raise CliError(f"{place} was deleted and made anew; watch it again")
        return shot

    def _events(self, uid: str) -> list[Object]:
        if not self._events_permitted:
            return []
        try:
            return self._cluster.events(uid)
        except ForbiddenError as error:
            self._events_permitted = False
            print(f"{error}; going on without events", file=sys.stderr, flush=True)
            return []


def _live(look: _Look, shot: Snapshot) -> Snapshot:
    console = Console()
    with Live(view.panel(shot), console=console, refresh_per_second=4, transient=True) as live:
        while not shot.status.finished:
            time.sleep(_INTERVAL)
            shot = look(shot)
            live.update(view.panel(shot))
    return shot


def _lines(look: _Look, shot: Snapshot) -> Snapshot:
    before: Snapshot | None = None
    while True:
        for line in view.plain(before, shot):
            print(line, flush=True)
        if shot.status.finished:
            return shot
        time.sleep(_INTERVAL)
        before, shot = shot, look(shot)
