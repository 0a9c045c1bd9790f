"""The address of worker 0, whose DNS name can appear some time after its pod."""

import socket
import threading
import time

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.stop_signal import StopSignal

_TIMEOUT = 120.0  # s; DNS servers can cache a missing name for half a minute


def address_of(name: str, stop: StopSignal) -> str:
    """Return the IPv4 address of a name as soon as it has one.

    Raises TrainerError 78 if it has none after two minutes, and 75 if the pod is asked to stop
    meanwhile. Look-ups run in a thread that is abandoned then, because they can hang.
    """
    lookup = _Lookup(name)
    threading.Thread(target=lookup.run, daemon=True).start()
    deadline = time.monotonic() + _TIMEOUT
    while lookup.address is None:
        if stop.at is not None:
            raise TrainerError(
                ExitCode.STOPPED, f"stopped while looking up {name}; nothing is lost"
            )
        if time.monotonic() > deadline:
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"{name} has no address after {_TIMEOUT:.0f} s ({lookup.problem}); check that "
                "cluster DNS works and that the job's headless Service exists",
            )
        time.sleep(0.05)
    return lookup.address


class _Lookup:
    """Repeats a look-up until it succeeds."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._deadline = time.monotonic() + _TIMEOUT
        self.address: str | None = None
        self.problem: OSError | str = "no answer"

    def run(self) -> None:
        while self.address is None and time.monotonic() < self._deadline:
            try:
                self.address = str(socket.getaddrinfo(self._name, None, socket.AF_INET)[0][4][0])
            except OSError as error:
                self.problem = error
                time.sleep(0.5)
