"""Settings of the operator, from the environment."""

import os
from dataclasses import dataclass


class SettingsError(Exception):
    """A variable is missing or not what it should be."""


@dataclass(frozen=True)
class Settings:
    """What the installation chose."""

    trainer_image: str
    namespaces: tuple[str, ...] = ()  # empty: all
    report_interval: float = 5.0  # s
    restart_backoff: float = 10.0  # s, doubled for each counted restart
    progress_write_interval: float = 5.0  # s between writes of progress alone, per job
    health_port: int = 0  # 0: no health endpoint

    @classmethod
    def from_environment(cls) -> "Settings":
        """FINETUNE_*; SettingsError names the variable, what it is and what is allowed."""
        image = os.environ.get("FINETUNE_TRAINER_IMAGE", "")
        if not image:
            raise SettingsError("FINETUNE_TRAINER_IMAGE is not set; name the trainer image")
        names = os.environ.get("FINETUNE_NAMESPACES", "")
        return cls(
            trainer_image=image,
            namespaces=tuple(name.strip() for name in names.split(",") if name.strip()),
            report_interval=_seconds("FINETUNE_REPORT_INTERVAL_SECONDS", cls.report_interval),
            restart_backoff=_seconds("FINETUNE_RESTART_BACKOFF_SECONDS", cls.restart_backoff),
            progress_write_interval=_seconds(
                "FINETUNE_PROGRESS_WRITE_SECONDS", cls.progress_write_interval
            ),
            health_port=int(_seconds("FINETUNE_HEALTH_PORT", cls.health_port)),
        )


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if value < 0:
        raise SettingsError(f"{name} is {text!r}; a number of at least 0 is allowed")
    return value
