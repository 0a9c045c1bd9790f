"""Ports to listen on."""

import random
import socket

# Below what Linux gives to outgoing connections, 32768 at the least: a port of those may be
# taken between the choice and the listening. Above what well-known programs use.
_PORTS = range(15000, 29000)
_TRIES = 100


def free_port() -> int:
    """A port of this machine on which nobody listens; OSError when none is found."""
    for port in random.SystemRandom().sample(_PORTS, _TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port of {_TRIES} between {_PORTS.start} and {_PORTS.stop - 1} is free")
