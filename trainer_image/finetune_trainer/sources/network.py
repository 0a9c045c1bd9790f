"""Trouble with the network: tried again for a while, then left to the next attempt."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # s between tries that brought nothing


class InterruptedTransferError(Exception):
    """A request failed in a way that may be over in a moment; the text has no secret."""


def patiently(address: str, ask: Callable[[], Answer]) -> Answer:
    """The answer to a request; TrainerError 78 (retryable) when there is none after all tries."""
    tries = Tries(address)
    while True:
        try:
            return ask()
        except InterruptedTransferError as error:
            tries.failed(error)


class Tries:
    """Counts tries in a row that brought nothing; each failure waits, the last one raises."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waits: Iterator[float] = iter(WAITS)

    def succeeded(self) -> None:
        """Something came: count from the beginning."""
        self._waits = iter(WAITS)

    def failed(self, error: InterruptedTransferError) -> None:
        """Wait for the next try; TrainerError 78 when there were enough."""
        wait = next(self._waits, None)
        if wait is None:
            raise unreachable(self._address, error) from error
        _log.warning("%s: %s; trying again in %.0f s", self._address, error, wait)
        time.sleep(wait)


def unreachable(address: str, error: InterruptedTransferError) -> TrainerError:
    """What is said when patience has ended; another attempt may help."""
    return TrainerError(
        ExitCode.ENVIRONMENT_UNUSABLE,
        f"{address}: cannot be reached ({error}); check the network of the pod (network policy, "
        "proxy, HF_ENDPOINT or AWS_ENDPOINT_URL); what was downloaded is kept",
        reason="NetworkTrouble",
    )
