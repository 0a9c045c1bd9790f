"""Addresses of pods: each pod has its own loopback address, so that all can use the same ports."""

import ipaddress
from pathlib import Path


class Addresses:
    """Assigns the addresses of one node in turn, so that an address is reused as late as possible.

    Peers of a deleted pod may still try to connect to its address. The position is kept in a file,
    so that this also holds when the agent restarts.
    """

    def __init__(self, network: str, file: Path) -> None:
        self._all = [str(ip) for ip in ipaddress.ip_network(network).hosts()]
        self._file = file
        self._next = int(file.read_text()) if file.exists() else 0

    def next(self, used: set[str]) -> str:
        """Return an address that is not in `used`; RuntimeError if there is none."""
        for _ in self._all:
            address = self._all[self._next]
            self._next = (self._next + 1) % len(self._all)
            if address not in used:
                self._file.write_text(str(self._next))
                return address
        raise RuntimeError(f"all {len(self._all)} pod addresses are in use")
