# SPDX-License-Identifier: BSD-3-Clause
"""The relay: the only place where chains move from one queue to another.

It moves segments, not bytes: payload lies where the device's pool put it. A virtqueue may break,
and another take its place: what the first did not use waits here, in the order in which it came,
until the second takes it.
"""

from collections import deque

import trio

from vof.errors import InvalidArgument, QueueBroken, QueueFull
from vof.virtio.model import Chain, DeviceQueue
from vof.virtio.virtqueue import Virtqueue

ZEROES = memoryview(bytes(1 << 20))


def zero(segment: memoryview) -> None:
    """Overwrite a segment: what was there before is not the device's to see, nor the driver's."""
    length = len(segment)
    segment[:] = ZEROES[:length] if length <= len(ZEROES) else bytes(length)


class Relay:
    """Moves chains from a device's queue to virtqueues, one after the other, and back.

    Attributes:
        waiting: chains that were received, and that no virtqueue holds.
    """

    def __init__(self, queue: DeviceQueue, front: bool, failure: bytes = b"") -> None:
        """Begin.

        Args:
            queue: where the driver makes chains available.
            front: the device fills buffers from the front: what is beyond the used length is
                nothing.
            failure: see ``DeviceModel.failure``.
        """
        self.waiting: deque[Chain] = deque()
        self._queue = queue
        self._front = front
        self._failure = failure
        self._room = trio.Event()

    async def run(self, vq: Virtqueue) -> None:
        """Relay until the virtqueue breaks. Suspends.

        Afterwards, and after a cancellation, once the device touches no buffer any more,
        ``take_back`` what it did not use.

        Raises:
            QueueBroken: it broke.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._complete, vq, nursery.cancel_scope)
            await self._forward(vq)
        vq.check_usable()

    async def _forward(self, vq: Virtqueue) -> None:
        """Add what the driver makes available, until the virtqueue breaks."""
        waiting, receive = self.waiting, self._queue.receive
        while True:
            while waiting:
                chain = waiting[0]
                readable, writable = chain.readable, chain.writable
                for segment in writable:
                    zero(segment)
                try:
                    vq.add_sgs((*readable, *writable), len(readable), len(writable), chain)
                except QueueFull:
                    vq.kick()
                    self._room = trio.Event()
                    await self._room.wait()
                except QueueBroken:
                    return
                except InvalidArgument:  # no device can take it
                    self._fail(waiting.popleft())
                    self._queue.flush()
                else:
                    waiting.popleft()
            vq.kick()
            waiting.extend(await receive())

    async def _complete(self, vq: Virtqueue, scope: trio.CancelScope) -> None:
        """Give back what the device used, until the virtqueue breaks; then end the other half."""
        queue, get_buf, front = self._queue, vq.get_buf, self._front
        push = queue.push
        while not vq.is_broken:
            while (used := get_buf()) is not None:
                chain: Chain = used[0]  # type: ignore[assignment]  # nobody else adds
                push(chain, used[1], None if front else sum(map(len, chain.writable)))
            queue.flush()
            self._room.set()
            await vq.wait_used()
        scope.cancel()

    def take_back(self, vq: Virtqueue) -> int:
        """Let all that a virtqueue holds wait again; return how many chains that are.

        The device must not touch its buffers any more.
        """
        taken: list[Chain] = []
        while (chain := vq.detach_unused_buf()) is not None:
            taken.append(chain)  # type: ignore[arg-type]  # nobody else adds
        self.waiting.extendleft(reversed(taken))
        return len(taken)

    def fail(self, count: int) -> None:
        """Complete the first ``count`` of what waits as failed."""
        for _ in range(count):
            self._fail(self.waiting.popleft())
        self._queue.flush()

    def _fail(self, chain: Chain) -> None:
        capacity = 0
        for segment in chain.writable:
            zero(segment)
            capacity += len(segment)
        failure = self._failure
        if failure and capacity:
            last = chain.writable[-1]
            last[-len(failure) :] = failure[-len(last) :]
        self._queue.push(chain, 0 if self._front else capacity, capacity)
