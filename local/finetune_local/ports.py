"""Chooses ports to listen on."""

import random
import socket

# Below the range that Linux uses for outgoing connections, which begins at 32768 or above: such a
# port may be taken between the choice and the listening. Above the ports of well-known programs.
_PORTS = range(15000, 29000)
_TRIES = 100


def free_port() -> int:
    """Return a port of this machine that is free; OSError if none is found."""
    for port in random.SystemRandom().sample(_PORTS, _TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(
        f"none of {_TRIES} ports tried between {_PORTS.start} and {_PORTS.stop - 1} is free"
    )
