"""The only clock of a simulated world."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Seconds since the world began; nothing passes unless somebody says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        """As Kubernetes writes times: whole seconds."""
        return START + timedelta(seconds=int(self.seconds))

    def stamp(self, ahead: float = 0.0) -> str:
        """RFC 3339, some seconds ahead."""
        moment = START + timedelta(seconds=int(self.seconds + ahead))
        return moment.isoformat()[:19] + "Z"
