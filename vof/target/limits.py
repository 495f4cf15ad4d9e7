# SPDX-License-Identifier: BSD-3-Clause
"""What a target gives away at most, and who has how much of it.

A peer is whoever comes from one address, or one user of unix sockets: all that is known of it
before it says a name, and what it cannot change at will. Limits for one peer stand beside those for
all, so that no single one can take everything.
"""

from dataclasses import dataclass
from typing import Literal

from vof.protocol.budget import Budget

Thing = Literal["connections", "associations", "queues"]


@dataclass(frozen=True)
class Limits:
    """What one target gives away at most.

    Attributes:
        request_bytes: readable, and writable, bytes of one request.
        queue_bytes: bytes in flight on one virtqueue; more makes it stop reading.
        association_bytes: beyond 256 KiB of each queue, of one device instance.
        peer_bytes: the same, of all device instances of one peer.
        total_bytes: the same, of all.
        associations: device instances at a time.
        peer_associations: of one peer.
        queues: virtqueues at a time.
        peer_queues: of one peer.
        connections: connections at a time.
        peer_connections: of one peer.
        connect_seconds: for a connection to say who it is.
        command_seconds: for a peer to finish a message that it began.
        drain_seconds: for in-flight requests to end when the target stops.
        keepalive_seconds: between signs of life on an idle control queue; 0 sends none.
    """

    request_bytes: int = 16 * 1024 * 1024
    queue_bytes: int = 64 * 1024 * 1024
    association_bytes: int = 256 * 1024 * 1024
    peer_bytes: int = 512 * 1024 * 1024
    total_bytes: int = 1024 * 1024 * 1024
    associations: int = 1024
    peer_associations: int = 768
    queues: int = 4096
    peer_queues: int = 3072
    connections: int = 4096
    peer_connections: int = 3072
    connect_seconds: float = 10.0
    command_seconds: float = 30.0
    drain_seconds: float = 10.0
    keepalive_seconds: float = 30.0


class Use:
    """What one peer, or all together, have at the moment.

    Attributes:
        connections: open ones.
        associations: device instances.
        queues: virtqueues.
        budget: bytes that their queues share.
    """

    __slots__ = ("associations", "budget", "connections", "queues")

    def __init__(self, budget: Budget) -> None:
        self.connections = self.associations = self.queues = 0
        self.budget = budget


class Books:
    """Who has what.

    Attributes:
        total: what all have together.
        peers: what each has, by ``Connection.peer``; only of those that have something.
    """

    def __init__(self, limits: Limits) -> None:
        self.total = Use(Budget(limits.total_bytes))
        self.peers: dict[str, Use] = {}
        self._limits = limits

    @property
    def limits(self) -> Limits:
        """Those in force. Others take effect for what comes next."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        self.total.budget.limit = limits.total_bytes
        for use in self.peers.values():
            use.budget.limit = limits.peer_bytes

    def full(self, thing: Thing, peer: str) -> str:
        """Return the name of the limit that leaves no room for one more of a thing, or ""."""
        use = self.peers.get(peer)
        if getattr(self.total, thing) >= getattr(self._limits, thing):
            return thing
        own = f"peer_{thing}"
        return own if use and getattr(use, thing) >= getattr(self._limits, own) else ""

    def take(self, thing: Thing, peer: str) -> None:
        """Note that a peer has one more."""
        if peer not in self.peers:
            self.peers[peer] = Use(Budget(self._limits.peer_bytes, self.total.budget))
        self._count(thing, peer, 1)

    def give(self, thing: Thing, peer: str) -> None:
        """Note that a peer has one less."""
        self._count(thing, peer, -1)
        use = self.peers[peer]
        if not (use.connections or use.associations or use.queues):
            del self.peers[peer]

    def _count(self, thing: Thing, peer: str, more: int) -> None:
        for use in (self.total, self.peers[peer]):
            setattr(use, thing, getattr(use, thing) + more)
