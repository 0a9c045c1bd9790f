"""The settings of the operator, read from environment variables."""

import os
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from finetune_api.devices import Catalogue, DeviceName, DeviceType
from finetune_operator.selector import Selector


class SettingsError(Exception):
    """A variable is missing or has a value that is not allowed."""


@dataclass(frozen=True)
class LeaseSettings:
    """The Lease of the leader election."""

    namespace: str
    name: str
    duration: int = 15  # s


@dataclass(frozen=True)
class Settings:
    """The settings of one installation."""

    trainer_image: str
    namespaces: tuple[str, ...] = ()  # empty: all namespaces
    selector: Selector = field(default_factory=Selector)  # jobs; empty: all jobs
    report_interval: float = 5.0  # s
    restart_backoff: float = 10.0  # s, doubled for each counted restart
    progress_write_interval: float = 5.0  # s between writes of progress alone, per job
    strict_certificates: bool = True  # those of the API server follow RFC 5280
    ended_metrics: float = 3600.0  # s for which the series of a job outlive it
    health_port: int = 0  # 0: no health endpoint
    lease: LeaseSettings | None = None  # None: this is the only replica
    device_types: Catalogue = field(default_factory=dict)

    @classmethod
    def from_environment(cls) -> "Settings":
        """Read the FINETUNE_* variables.

        SettingsError names the variable, its value and the allowed values.
        """
        image = os.environ.get("FINETUNE_TRAINER_IMAGE", "")
        if not image:
            raise SettingsError("FINETUNE_TRAINER_IMAGE is not set; name the trainer image")
        names = os.environ.get("FINETUNE_NAMESPACES", "")
        return cls(
            trainer_image=image,
            namespaces=tuple(name.strip() for name in names.split(",") if name.strip()),
            selector=_selector("FINETUNE_JOB_SELECTOR"),
            report_interval=_seconds("FINETUNE_REPORT_INTERVAL_SECONDS", cls.report_interval),
            restart_backoff=_seconds("FINETUNE_RESTART_BACKOFF_SECONDS", cls.restart_backoff),
            progress_write_interval=_seconds(
                "FINETUNE_PROGRESS_WRITE_SECONDS", cls.progress_write_interval
            ),
            strict_certificates=_flag("FINETUNE_STRICT_CERTIFICATES", cls.strict_certificates),
            ended_metrics=_seconds("FINETUNE_ENDED_METRICS_SECONDS", cls.ended_metrics),
            health_port=_integer("FINETUNE_HEALTH_PORT", cls.health_port, 0, 65535),
            lease=_lease(),
            device_types=_device_types("FINETUNE_DEVICE_TYPES"),
        )


def _lease() -> LeaseSettings | None:
    name = os.environ.get("FINETUNE_LEASE_NAME", "")
    namespace = os.environ.get("FINETUNE_LEASE_NAMESPACE", "")
    # At least 10 s, because writes end 5 s before the lease does, and renewals need the rest.
    duration = _integer("FINETUNE_LEASE_DURATION_SECONDS", LeaseSettings.duration, 10, 600)
    if bool(name) != bool(namespace):
        missing = "FINETUNE_LEASE_NAMESPACE" if name else "FINETUNE_LEASE_NAME"
        raise SettingsError(
            f"{missing} is not set; set both FINETUNE_LEASE_NAMESPACE and "
            "FINETUNE_LEASE_NAME for leader election, or neither for a single replica"
        )
    return LeaseSettings(namespace, name, duration) if name else None


def _device_types(name: str) -> dict[str, DeviceType]:
    try:
        return _CATALOGUE.validate_json(os.environ.get(name) or "{}")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise SettingsError(f"{name}: {place}: {first['msg']}") from None


_CATALOGUE = TypeAdapter(dict[DeviceName, DeviceType])


def _selector(name: str) -> Selector:
    text = os.environ.get(name, "")
    try:
        return Selector.parse(text)
    except ValueError as error:
        raise SettingsError(f"{name} is {text!r}: {error}") from None


def _flag(name: str, default: bool) -> bool:
    text = os.environ.get(name)
    if text is None:
        return default
    if text not in ("true", "false"):
        raise SettingsError(f"{name} is {text!r}; true or false is allowed")
    return text == "true"


def _integer(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise SettingsError(f"{name} is {text!r}; an integer from {least} to {most} is allowed")
    return int(text)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise SettingsError(f"{name} is {text!r}; a number of at least 0 is allowed")
    return value
