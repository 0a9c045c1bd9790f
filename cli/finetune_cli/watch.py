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

from finetune_cli import view
from finetune_cli.cluster import AwayError, Cluster
from finetune_cli.errors import CliError
from finetune_cli.view import Snapshot

_INTERVAL = 1.0  # s


def run(cluster: Cluster, name: str) -> int:
    """0 when the job succeeded, 1 when it failed; CliError when it cannot be watched."""
    first = _look(cluster, name, None)
    final = _live(cluster, first) if sys.stdout.isatty() else _lines(cluster, first)
    print("\n".join(view.result(final)), flush=True)
    return 0 if final.status.phase == "Succeeded" else 1


def _look(cluster: Cluster, name: str, before: Snapshot | None) -> Snapshot:
    """A new snapshot; the old one with a note while the API server is away."""
    now = datetime.now(UTC)
    try:
        job = cluster.job(name)
        events = cluster.events(job["metadata"]["uid"])
    except AwayError as error:
        if before is None:
            raise
        return replace(before, now=now, note=f"{error}; trying again")
    except CliError:
        if before is None:
            raise
        raise CliError(f"{before.namespace}/{name} was deleted while it was watched") from None
    shot = Snapshot.of(job, events, now)
    if before and shot.created != before.created:
        raise CliError(f"{before.namespace}/{name} was deleted and made anew; watch it again")
    return shot


def _live(cluster: Cluster, shot: Snapshot) -> Snapshot:
    console = Console()
    with Live(view.panel(shot), console=console, refresh_per_second=4, transient=True) as live:
        while not shot.status.finished:
            time.sleep(_INTERVAL)
            shot = _look(cluster, shot.name, shot)
            live.update(view.panel(shot))
    return shot


def _lines(cluster: Cluster, shot: Snapshot) -> Snapshot:
    before: Snapshot | None = None
    while True:
        for line in view.plain(before, shot):
            print(line, flush=True)
        if shot.status.finished:
            return shot
        time.sleep(_INTERVAL)
        before, shot = shot, _look(cluster, shot.name, shot)
