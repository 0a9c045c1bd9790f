"""The address of worker 0, whose name may need a while to exist."""

import socket
import threading
import time

from finetune_api.exit_codes import ExitCode
from finetune_trainer.common.errors import TrainerError
from finetune_trainer.common.stop_signal import StopSignal

_SECONDS = 120.0  # DNS servers remember "no such name" for up to half a minute


def address_of(name: str, stop: StopSignal) -> str:
    """IPv4 address; TrainerError 78 when there is none in time, 75 when asked to stop meanwhile.

    A look-up can hang for as long as the resolver likes, so it runs in a thread that is left
    behind.
    """
    lookup = _Lookup(name)
    threading.Thread(target=lookup.run, daemon=True).start()
    deadline = time.monotonic() + _SECONDS
    while lookup.address is None:
        if stop.at is not None:
            raise TrainerError(
                ExitCode.STOPPED, f"stopped while looking for {name}; nothing is lost"
            )
        if time.monotonic() > deadline:
            raise TrainerError(
                ExitCode.ENVIRONMENT_UNUSABLE,
                f"{name} has no address after {_SECONDS:.0f} s ({lookup.problem}); is cluster "
                "DNS working, and is the job's headless Service there?",
            )
        time.sleep(0.05)
    return lookup.address


class _Lookup:
    """Asks again and again until there is an answer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._deadline = time.monotonic() + _SECONDS
        self.address: str | None = None
        self.problem: OSError | str = "no answer"

    def run(self) -> None:
        while self.address is None and time.monotonic() < self._deadline:
            try:
                self.address = str(socket.getaddrinfo(self._name, None, socket.AF_INET)[0][4][0])
            except OSError as error:
                self.problem = error
                time.sleep(0.5)
