"""Retries of network requests: some within this attempt, then the next attempt tries again."""

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from finetune_api import reasons
from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # s between tries without progress


class InterruptedTransferError(Exception):
    """A request failed in a way that a retry may cure. The text contains no secret."""


def with_retries(address: str, request: Callable[[], Answer]) -> Answer:
    """Return the answer to a request; TrainerError 78 (retryable) if all tries fail."""
    retries = Retries(address)
    while True:
        try:
            return request()
        except InterruptedTransferError as error:
            retries.failed(error)


class Retries:
    """A count of consecutive failures: each failure waits, the last one raises."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._waits: Iterator[float] = iter(WAITS)

    def succeeded(self) -> None:
        """Reset the count: the transfer made progress."""
        self._waits = iter(WAITS)

    def failed(self, error: InterruptedTransferError) -> None:
        """Wait before the next try; TrainerError 78 if there are no tries left."""
        wait = next(self._waits, None)
        if wait is None:
            raise unreachable(self._address, error) from error
        _log.warning("%s: %s; trying again in %.0f s", self._address, error, wait)
        time.sleep(wait)


def unreachable(address: str, error: InterruptedTransferError) -> TrainerError:
    """Return the error after the last try. The next attempt may succeed."""
    return TrainerError(
        ExitCode.ENVIRONMENT_UNUSABLE,
        f"{address}: cannot be reached ({error}); check the network of the pod (network policy, "
        "proxy, HF_ENDPOINT or AWS_ENDPOINT_URL); what was downloaded is kept",
        reason=reasons.NETWORK_TROUBLE,
    )
