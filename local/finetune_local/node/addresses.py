"""Addresses of pods: an own loopback address each, so that all can use the same ports."""

import ipaddress
from pathlib import Path


class Addresses:
    """Hands out the addresses of one node; they come round again late.

    A pod that is gone may still be looked for by its peers, so its address stays free for as long
    as possible, also when the agent is started again.
    """

    def __init__(self, network: str, note: Path) -> None:
        self._all = [str(ip) for ip in ipaddress.ip_network(network).hosts()]
        self._note = note
        self._next = int(note.read_text()) if note.exists() else 0

    def next(self, used: set[str]) -> str:
        """A free address."""
        for _ in self._all:
            address = self._all[self._next]
            self._next = (self._next + 1) % len(self._all)
            if address not in used:
                self._note.write_text(str(self._next))
                return address
        raise RuntimeError(f"all {len(self._all)} pod addresses are in use")
