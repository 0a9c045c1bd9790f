"""Text for people that more than one program writes."""


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: 48s, 12m, 1h7m, 2d3h. Negative ones are 0s."""
    total = max(0, int(seconds))
    if total < 90:
        return f"{total}s"
    minutes = total // 60
    if minutes < 60:
        return f"{minutes}m"
    hours, rest = divmod(minutes, 60)
    return f"{hours}h{rest}m" if hours < 24 else f"{hours // 24}d{hours % 24}h"
