# SPDX-License-Identifier: BSD-3-Clause
"""A queue without a driver, and requests of any cut, for tests of device models."""

from collections import deque
from itertools import pairwise

import trio

from vof.virtio import Chain, DeviceModel
from vof.virtio.blk import REQUEST

OLD = 0xEE
"""What writable memory holds before: nothing of it may reach the driver."""


class FakeQueue:
    """Implements ``DeviceQueue``; ``run`` is its driver."""

    def __init__(self):
        self.batches = deque()
        self.pushed = {}
        self.visible = {}
        self.changed = trio.Event()
        self.ended = None

    def _change(self):
        self.changed.set()
        self.changed = trio.Event()

    async def receive(self):
        self.flush()
        while not self.batches:
            if self.ended is not None:
                raise self.ended
            await self.changed.wait()
        return self.batches.popleft()

    def push(self, chain, written, filled=None):
        assert filled is None or filled >= written
        assert chain not in self.pushed, "pushed twice"
        self.pushed[chain] = written

    def flush(self):
        self.visible.update(self.pushed)
        self._change()

    def offer(self, *chains):
        self.batches.append(chains)
        self._change()

    async def used(self, *chains):
        """Wait until the chains are used; return the used lengths."""
        with trio.fail_after(10):
            while not all(chain in self.visible for chain in chains):
                await self.changed.wait()
        return [self.visible[chain] for chain in chains]

    async def run(self, *chains):
        """Offer one batch and wait for it."""
        self.offer(*chains)
        return await self.used(*chains)

    def forget(self):
        """Let go of every chain."""
        self.pushed.clear()
        self.visible.clear()

    def end(self, error):
        self.ended = error
        self._change()


def answer(model: DeviceModel, *batches, negotiate=True):
    """Serve batches of chains, one after another, in a new loop; return all used lengths."""
    if negotiate:
        model.features = model.device_features

    async def main():
        queue = FakeQueue()
        written = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(model.serve, 0, queue)
            for batch in batches:
                written += await queue.run(*batch)
            nursery.cancel_scope.cancel()
        return written

    return trio.run(main)


def segments(data: bytes, cuts=()):
    """Return ``data`` in new memory, in pieces that end at ``cuts``; some may be empty."""
    memory = memoryview(bytearray(data))
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return tuple(memory[start:stop] for start, stop in pairwise(edges))


def blk(kind, sector=0, out=b"", into=0, cuts=(), in_cuts=()):
    """Return the chain of a block request with ``into`` data bytes before the status byte."""
    readable = segments(REQUEST.pack(kind, 0, sector) + out, cuts)
    return Chain(readable, segments(bytes([OLD]) * (into + 1), in_cuts), None)


def written_data(chain):
    """Return what the device wrote: data, status byte."""
    data = b"".join(chain.writable)
    return data[:-1], data[-1]
