"""Waiting for other pods without a time limit: look-ups, and reports of what is waited for.

The pods of a gang start minutes apart if one of their nodes has yet to pull the image. How long a
gang may stay incomplete is for the operator to decide, which sees all pods.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable

_LOG_SECONDS = 60.0
_REPORT_SECONDS = 1.0
_RETRY_SECONDS, _REFRESH_SECONDS = 0.5, 10.0  # between two look-ups, without and with a result
_log = logging.getLogger("waiting")

Notify = Callable[[str | None], None]
"""Receives what a process waits for, several times a minute, and None once it goes on."""


class Waiting:
    """Passes on what a process waits for, and logs it every minute."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._began = self._logged = time.monotonic()
        self._notified: float | None = None

    def __call__(self, what: str | None) -> None:
        """Process that this process waits for `what`, as often as convenient; None: it goes on."""
        now = time.monotonic()
        if what is None or self._notified is None or now - self._notified >= _REPORT_SECONDS:
            self._notified = now
            self._notify(what)
        if what is not None and now - self._logged >= _LOG_SECONDS:
            self._logged = now
            # A warning, because ranks other than 0 log nothing else.
            _log.warning("waiting for %s, for %.0f s so far", what, now - self._began)


def family_of(address: str) -> socket.AddressFamily:
    """Return the address family of a numeric address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Lookup:
    """Looks up a name again and again, in a thread that is abandoned, because a look-up can hang.

    `address` is the newest result. Addresses of the family of `own`, the address of this pod, are
    preferred: worker 0 listens on the first address of its pod, as this pod does.
    """

    def __init__(self, name: str, own: str) -> None:
        self._name, self._family = name, family_of(own)
        self.address: str | None = None
        self.problem: OSError | str = "no answer"
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="lookup", daemon=True).start()

    def close(self) -> None:
        """Look up nothing more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                found = socket.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)
                found.sort(key=lambda entry: entry[0] != self._family)
                self.address = str(found[0][4][0])
            except OSError as error:
                self.problem = error
            # An old address may belong to a pod that was replaced, so it is looked up again.
            self._ended.wait(_RETRY_SECONDS if self.address is None else _REFRESH_SECONDS)
