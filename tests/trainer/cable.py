"""Two hosts that are connected by a switch, as network namespaces: `with Cable() as cable`.

A host is a process whose namespaces other processes enter (nsenter). `cut` takes down the port of
one host on the switch. As with a broken cable, packets are lost and neither host is notified.
"""

import subprocess
import sys
from types import TracebackType
from typing import Self

from pyroute2 import IPRoute

NETWORK, NETWORK_6 = "10.9.0", "fd00:9:"
_NO_DAD = 2  # IFA_F_NODAD: the address can be used at once


class Cable:
    """The hosts 1 and 2 of a network, and their connection. An IPv6 network has no IPv4."""

    def __init__(self, network: str = NETWORK) -> None:
        self._switch = _start("--user", "--map-root-user", "--net", role="switch", network=network)
        self.hosts = [int(self._command(f"host {number}")) for number in (1, 2)]

    def enter(self, host: int) -> list[str]:
        """Return the prefix of a command that runs on a host."""
        where = ["--user", "--net", "--preserve-credentials", "--target", str(self.hosts[host])]
        return ["nsenter", *where, "--"]

    def cut(self) -> None:
        """Cut the connection between the hosts."""
        self._command("cut")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End hosts and network. Processes that still run there lose their network devices."""
        self._switch.communicate()

    def _command(self, command: str) -> str:
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(command + "\n")
        self._switch.stdin.flush()
        answer = self._switch.stdout.readline()
        assert answer, f"the switch ended at {command!r}"
        return answer


def _start(*namespaces: str, role: str, network: str) -> subprocess.Popen[str]:
    command = ["unshare", *namespaces, sys.executable, "-m", "tests.trainer.cable", role, network]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def _switch(network: str) -> None:
    """Answer commands until stdin ends."""
    hosts: list[subprocess.Popen[str]] = []
    with IPRoute() as ip:
        ip.link("add", ifname="switch", kind="bridge")
        ip.link("set", ifname="switch", state="up")
        (bridge,) = ip.link_lookup(ifname="switch")
        for line in sys.stdin:
            if line == "cut\n":
                ip.link("set", ifname="port1", state="down")
                print("done", flush=True)
                continue
            number = line.split()[1]
            host = _start("--net", role=number, network=network)
            hosts.append(host)
            assert host.stdin is not None
            assert host.stdout is not None
            host.stdout.readline()  # it is in its namespace
            peer = {"ifname": "eth0", "net_ns_pid": host.pid}
            ip.link("add", ifname=f"port{number}", kind="veth", peer=peer)
            ip.link("set", ifname=f"port{number}", master=bridge, state="up")
            host.stdin.write("\n")
            host.stdin.flush()
            host.stdout.readline()  # its device has an address
            print(host.pid, flush=True)
    for host in hosts:
        host.communicate()


def _host(number: str, network: str) -> None:
    print("started", flush=True)
    sys.stdin.readline()
    with IPRoute() as ip:
        (device,) = ip.link_lookup(ifname="eth0")
        (loopback,) = ip.link_lookup(ifname="lo")
        ip.link("set", index=loopback, state="up")
        if ":" in network:
            ip.addr("delete", index=loopback, address="127.0.0.1", prefixlen=8)
            address = {"address": f"{network}:{number}", "prefixlen": 64, "flags": _NO_DAD}
        else:
            address = {"address": f"{network}.{number}", "prefixlen": 24}
        ip.addr("add", index=device, **address)
        ip.link("set", index=device, state="up")
    print("up", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "switch":
        _switch(sys.argv[2])
    else:
        _host(*sys.argv[1:])
