"""The only clock of a simulated world."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Seconds since the world began. Time passes only when a test sets it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        """Return the time in whole seconds, as Kubernetes writes it."""
        return START + timedelta(seconds=int(self.seconds))

    def stamp(self, ahead: float = 0.0) -> str:
        """Return the time `ahead` seconds from now, in RFC 3339."""
        moment = START + timedelta(seconds=int(self.seconds + ahead))
        return moment.isoformat()[:19] + "Z"
