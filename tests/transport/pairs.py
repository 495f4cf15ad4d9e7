# SPDX-License-Identifier: BSD-3-Clause
"""Two queue pairs of software with a connection on each, for tests."""

import os
from contextlib import asynccontextmanager

import trio

from vof.errors import RemoteProtocolError
from vof.memory import Region
from vof.protocol.registered import REMOTE_READ, REMOTE_WRITE, Memory
from vof.transport.loopback_pairs import LoopbackDomain, faults, join
from vof.transport.queue_pair import KeyedConnection

LIMIT = 10
BOTH = REMOTE_READ | REMOTE_WRITE


class Carried:
    """A keyed stream that sends what a test says, and keeps what comes."""

    def __init__(self, receives=(8, 64)):
        self.receives = receives
        self.waiting = []
        self.got = []
        self.done = 0
        self.begun = None

    def carry(self, memory, reads):
        self.begun = memory, reads

    @property
    def unsent(self):
        return bool(self.waiting)

    expects = False

    def posts(self, room):
        posts, self.waiting = self.waiting[:room], self.waiting[room:]
        return posts

    def completed(self, count):
        self.done += count

    def received(self, message):
        if message == b"bad":
            raise RemoteProtocolError("it is bad")
        self.got.append(message)


class Ends:
    """Two connections, each with a stream."""

    def __init__(self, nursery, **limits):
        near = Memory(LoopbackDomain(), BOTH)
        self.pairs = join(near, **limits)
        self.connections = [KeyedConnection(pair, "peer") for pair in self.pairs]
        self.streams = [Carried(), Carried()]
        for connection, stream in zip(self.connections, self.streams, strict=True):
            connection.attach(stream, nursery)
        self.near, self.far = self.connections

    def ready(self):
        """Let both have their receives."""
        self.near.flush()
        self.far.flush()

    def send(self, *posts):
        self.streams[0].waiting += posts
        self.near.flush()

    def transfer(self, kind, length=5, right=None, at=0):
        """Return a post, the memory on this side, and that on the other."""
        here = self.pairs[0].memory.alloc(length)
        region = Region(4096)
        keys = self.pairs[1].memory.domain.register(
            region, right or (REMOTE_READ, REMOTE_WRITE)[kind]
        )
        address, known = self.pairs[0].memory.find(here)
        post = (kind, address, length, known.local, region.address + at, keys.remote)
        return post, here, region.view[at : at + length]


def eventfds():
    """Return how many eventfds are open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += "eventfd" in os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # of the listing itself
            pass
    return count


@asynccontextmanager
async def making():
    """Yield what makes ends, which are closed then; nothing of them is left."""
    faults.clear()
    made = []
    before = eventfds()
    async with trio.open_nursery() as nursery:

        def make(**limits):
            made.append(Ends(nursery, **limits))
            return made[-1]

        yield make
        for ends in made:
            for connection in ends.connections:
                connection.close()
                connection.close()
        nursery.cancel_scope.cancel()
    assert eventfds() == before
    faults.clear()
