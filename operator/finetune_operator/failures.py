"""What keeps failing for a job, and when creating its pods is tried again."""

from dataclasses import dataclass, field

from finetune_api import reasons
from finetune_client.errors import ApiError
from finetune_operator.plan.observe import Refusal
from finetune_operator.queue import Key

_SHOWN_FROM = 3  # failures in a row: the first request and two retries
_FIRST, _LONGEST = 1.0, 60.0  # s between two attempts to create the pods of a job


def sentence(error: BaseException) -> str:
    """Return what was requested and how it failed, in the text of the API server."""
    notes = getattr(error, "__notes__", [])
    request = notes[0] if notes else "carry out a request"
    if isinstance(error, ApiError):
        kind = f"HTTP {error.code}" + (f" {error.reason}" if error.reason else "")
        return f"the API server failed to {request} ({kind}): {error.message}"
    # The text of a lost connection can contain a port that is new in every attempt.
    return f"the API server does not answer the request to {request} ({type(error).__name__})"


@dataclass
class _Streak:
    """Requests of a job that failed in a row."""

    length: int
    text: str
    announced: bool = False


@dataclass
class Failures:
    """The jobs whose last request failed. A failure is shown once it has outlasted a retry."""

    _streaks: dict[Key, _Streak] = field(default_factory=dict)

    def record(self, key: Key, error: BaseException) -> None:
        """Note that a request failed."""
        before = self._streaks.get(key, _Streak(0, ""))
        text = f"{sentence(error)[:960]}; trying again"
        self._streaks[key] = _Streak(before.length + 1, text, before.announced)

    def shown(self, key: Key) -> Refusal | None:
        """Return the newest failure if it is to be shown."""
        streak = self._streaks.get(key)
        if streak is None or streak.length < _SHOWN_FROM:
            return None
        return Refusal(reasons.REQUEST_FAILED, streak.text)

    def announce(self, key: Key) -> bool:
        """Return whether this is the first call for the failures in a row."""
        streak = self._streaks[key]
        first, streak.announced = not streak.announced, True
        return first

    def clear(self, key: Key) -> bool:
        """Forget the failures, since the requests succeed again; return whether they were shown."""
        streak = self._streaks.pop(key, None)
        return streak is not None and streak.length >= _SHOWN_FROM


@dataclass
class Pauses:
    """The jobs whose pods were refused, and when to create them again.

    The pods of the gang that do exist cause events all the time. Without a pause, every event would
    be followed by another refused request.
    """

    _entries: dict[Key, tuple[int, int, float]] = field(default_factory=dict)

    def extend(self, key: Key, generation: int, now: float) -> float:
        """Begin the next pause, which is twice as long as the one before; return its seconds."""
        old, number, _ = self._entries.get(key, (generation, 0, now))
        number = number + 1 if old == generation else 1
        seconds = min(_LONGEST, _FIRST * 2.0 ** min(number - 1, 16))
        self._entries[key] = generation, number, now + seconds
        return seconds

    def left(self, key: Key, generation: int, now: float) -> float:
        """Return the seconds that are left. The edit of a job ends its pause."""
        old, _, until = self._entries.get(key, (generation, 0, now))
        return max(0.0, until - now) if old == generation else 0.0

    def end(self, key: Key) -> None:
        """Forget the pauses of a job."""
        self._entries.pop(key, None)
