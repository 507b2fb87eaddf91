"""Thin links on one machine: a network namespace a rank, each behind a token bucket.

Every rank gets a namespace of its own with one interface; all are plugged into one bridge, and the
token bucket filter of Linux holds both directions of every rank to the same rate. What is measured
through such links is real traffic over real sockets. The namespaces are private and are removed
when the context ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from laconic.errors import ConfigError, LaconicError

_SUBNET = "10.77.0"
_DEVICE = "eth0"
_BURST = "256kb"
_QUEUE = "100ms"
_MOST_RANKS = 64


class LinksUnavailableError(LaconicError):
    """This process may not shape links; the message says what is missing."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs.

    Attributes:
        address: Address of the rank inside the private network.
        device: Interface that carries its traffic, for ``GLOO_SOCKET_IFNAME``.
        prefix: Words to put before the rank's command line.
    """

    address: str
    device: str
    prefix: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """Return the variables that make gloo and NCCL use the rank's interface."""
        return {"GLOO_SOCKET_IFNAME": self.device, "NCCL_SOCKET_IFNAME": self.device}

    def traffic(self) -> tuple[int, int]:
        """Return the bytes that the kernel has received and sent on the rank's interface."""
        told = _run([*self.prefix, "cat", "/proc/net/dev"])
        for line in told.splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == self.device:
                fields = counters.split()
                return int(fields[0]), int(fields[8])
        raise LinksUnavailableError(f"no interface {self.device!r} where rank {self.address} runs.")


@contextmanager
def shaped_links(ranks: int, megabits: float | None) -> Iterator[tuple[Place, ...]]:
    """Give every rank a link of its own.

    Args:
        ranks: Number of ranks, 1..64.
        megabits: Rate of each rank's link in Mbit/s, each way; None leaves the ranks on the
            loopback interface, where nothing is limited.

    Raises:
        ConfigError: A number out of its range.
        LinksUnavailableError: ``ip`` or ``tc`` is missing, or the right to use them is.
    """
    if not 1 <= ranks <= _MOST_RANKS:
        raise ConfigError(f"links: ranks={ranks} must be in 1..{_MOST_RANKS}.")
    if megabits is None:
        yield tuple(Place("127.0.0.1", "lo") for _ in range(ranks))
        return
    if not megabits > 0:
        raise ConfigError(f"links: megabits={megabits} must be positive, or None for no limit.")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise LinksUnavailableError(f"links: no {tool!r} on this machine (package iproute2).")
    network = _Network(ranks, megabits)
    try:
        network.build()
        yield network.places()
    finally:
        network.remove()


class _Network:
    """The bridge and the namespaces around it."""

    def __init__(self, ranks: int, megabits: float) -> None:
        self.megabits = megabits
        self.hub = f"laconic-{os.getpid()}-hub"
        self.spaces = [f"laconic-{os.getpid()}-{rank}" for rank in range(ranks)]

    def build(self) -> None:
        for space in (self.hub, *self.spaces):
            _run(["ip", "netns", "add", space])
        _run(["ip", "-n", self.hub, "link", "add", "br0", "type", "bridge"])
        _run(["ip", "-n", self.hub, "link", "set", "br0", "up"])
        for rank, space in enumerate(self.spaces):
            self._plug_in(rank, space)

    def _plug_in(self, rank: int, space: str) -> None:
        port, hub = f"p{rank}", self.hub
        veth = ["link", "add", _DEVICE, "netns", space, "type", "veth"]
        _run(["ip", *veth, "peer", "name", port, "netns", hub])
        _run(["ip", "-n", space, "addr", "add", f"{self.address(rank)}/24", "dev", _DEVICE])
        _run(["ip", "-n", hub, "link", "set", port, "master", "br0"])
        for where, device in ((space, "lo"), (space, _DEVICE), (hub, port)):
            _run(["ip", "-n", where, "link", "set", device, "up"])
        for where, device in ((space, _DEVICE), (hub, port)):
            bucket = ["tbf", "rate", f"{self.megabits:g}mbit", "burst", _BURST, "latency", _QUEUE]
            _run(["tc", "-n", where, "qdisc", "add", "dev", device, "root", *bucket])

    def places(self) -> tuple[Place, ...]:
        return tuple(
            Place(self.address(rank), _DEVICE, ("ip", "netns", "exec", space))
            for rank, space in enumerate(self.spaces)
        )

    @staticmethod
    def address(rank: int) -> str:
        return f"{_SUBNET}.{rank + 1}"

    def remove(self) -> None:
        """Delete the namespaces that exist; their interfaces go with them."""
        for space in (*self.spaces, self.hub):
            if Path("/var/run/netns", space).exists():
                _run(["ip", "netns", "delete", space])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LinksUnavailableError(
            f"links: {' '.join(command)!r} failed: {done.stderr.strip() or done.returncode}. "
            "Network namespaces need the right CAP_NET_ADMIN (root)."
        )
    return done.stdout
