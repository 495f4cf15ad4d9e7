# SPDX-License-Identifier: BSD-3-Clause
"""A network model whose queues are served, and a link, for tests."""

import random
import socket
from contextlib import asynccontextmanager

import trio

from tests.target.devices.fakes import OLD, FakeQueue, segments
from vof.target.devices import Link, NetModel
from vof.virtio import Chain
from vof.virtio.net import CONTROLQ, HEADER, RECEIVED, RECEIVEQ, TRANSMITQ

ROOM = 2048
MAC = bytes.fromhex("020000000001")


class Plugged:
    """A model whose queues are served, and the driver's side of them."""

    def __init__(self, model):
        self.model = model
        self.queues = [FakeQueue(), FakeQueue(), FakeQueue()]
        self.buffers = []
        self.random = random.Random(0)

    @property
    def counters(self):
        return self.model.counters

    def give(self, count, room=ROOM, cuts=()):
        """Offer receive buffers."""
        chains = [Chain((), segments(bytes([OLD]) * room, cuts), None) for _ in range(count)]
        self.buffers += chains
        self.queues[RECEIVEQ].offer(*chains)

    async def send(self, *frames, cuts=(), header=bytes(HEADER.size)):
        chains = [Chain(segments(header + frame, cuts), (), None) for frame in frames]
        assert await self.queues[TRANSMITQ].run(*chains) == [0] * len(chains)

    async def frames(self, count):
        """Wait for the next used buffers; return their frames and check all around them."""
        chains, self.buffers = self.buffers[:count], self.buffers[count:]
        frames = []
        for chain, written in zip(chains, await self.queues[RECEIVEQ].used(*chains), strict=True):
            data = b"".join(chain.writable)
            assert data[: HEADER.size] == RECEIVED
            assert set(data[written:]) <= {OLD}
            frames.append(data[HEADER.size : written])
        return frames

    async def command(self, kind, number, data=b"", cuts=()):
        return await self.raw(bytes((kind, number)) + data, cuts)

    async def raw(self, data, cuts=()):
        chain = Chain(segments(data, cuts), segments(bytes([OLD]) * 3, (0, 1)), None)
        assert await self.queues[CONTROLQ].run(chain) == [1]
        assert b"".join(chain.writable)[1:] == bytes([OLD]) * 2
        return chain.writable[1][0]

    def some(self, *sizes):
        return [self.random.randbytes(size) for size in sizes]


@asynccontextmanager
async def plugged(link=None, **options):
    model = NetModel(link, mac=MAC, **options)
    model.features = model.device_features
    here = Plugged(model)
    async with trio.open_nursery() as nursery:
        for index, queue in enumerate(here.queues):
            nursery.start_soon(model.serve, index, queue)
        model.status_changed(15)
        yield here
        nursery.cancel_scope.cancel()
    model.close()


class FakeLink(Link):
    """Takes ``places`` frames into ``sent``; gives each datagram that is put into ``other``.

    ``error`` is raised at the next calls instead.
    """

    def __init__(self, places=1000):
        self.sock, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        super().__init__("fake", self.sock.fileno())
        self.places = places
        self.sent = []
        self.error = None

    def send(self, frame):
        if self.error is not None:
            raise self.error
        if len(self.sent) >= self.places:
            raise BlockingIOError
        self.sent.append(bytes(frame))

    async def room(self):
        await trio.sleep(0.001)

    def receive_into(self, buffer):
        if self.error is not None:
            raise self.error
        return self.sock.recv_into(buffer)

    def close(self):
        self.sock.close()
        self.other.close()
