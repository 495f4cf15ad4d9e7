# SPDX-License-Identifier: BSD-3-Clause
"""The relay: the only place where chains move from one queue to another.

It moves segments, not bytes: payload lies where the device's pool put it. A virtqueue may break,
and another take its place: what the first did not use waits here, in the order in which it came,
until the second takes it.
"""

from collections import deque
from resource import RUSAGE_THREAD, getrusage

import trio

from vof.errors import InvalidArgument, QueueBroken, QueueFull
from vof.virtio.model import Chain, DeviceQueue
from vof.virtio.virtqueue import Virtqueue

KICKED, FLUSHED = 4, 8
"""So many chains of a batch are passed on at a time, as long as this thread keeps its CPU. Client,
this process and the device have a part in each: if a batch went round as a whole, only one of them
would work at a time. Where they share a CPU, parts would only be more work: whoever is woken takes
the CPU from us, which the kernel counts."""
MOST = 1 << 20
ZEROES = memoryview(bytes(MOST))


def zero(segment: memoryview) -> int:
    """Overwrite a segment: what was there before is not the device's to see, nor the driver's.

    Returns:
        Its length.
    """
    length = len(segment)
    segment[:] = ZEROES[:length] if length <= MOST else bytes(length)
    return length


class Relay:
    """Moves chains from a device's queue to virtqueues, one after the other, and back.

    Attributes:
        waiting: chains that were received, and that no virtqueue holds.
    """

    _vq: Virtqueue
    _num: int  # descriptors of it, free when nothing is in flight

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
        self._parts = False
        self._switches = 0

    async def run(self, vq: Virtqueue) -> None:
        """Relay until the virtqueue breaks. Suspends.

        Afterwards, and after a cancellation, once the device touches no buffer any more,
        ``take_back`` what it did not use.

        Raises:
            QueueBroken: it broke.
        """
        self._vq, self._num = vq, vq.num_free
        receive, waiting = self._queue.receive, self.waiting
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sleep, vq, nursery.cancel_scope)
            try:
                while not vq.is_broken:
                    self._offer()
                    waiting.extend(await receive())
            finally:
                vq.attend(None)
        vq.check_usable()

    async def _sleep(self, vq: Virtqueue, scope: trio.CancelScope) -> None:
        """Complete what nobody saw by polling, until the virtqueue breaks; then end it all."""
        while not vq.is_broken:
            self._complete()
            await vq.wait_used()
        scope.cancel()

    def _offer(self) -> None:
        """Add what waits, as far as there is room."""
        vq, waiting, front, added = self._vq, self.waiting, self._front, 0
        if len(waiting) > KICKED:
            switches = getrusage(RUSAGE_THREAD).ru_nivcsw
            self._parts = switches == self._switches
            self._switches = switches
        while waiting:
            chain = waiting[0]
            readable, writable = chain.readable, chain.writable
            filled = sum(map(zero, writable))
            try:
                vq.add_sgs(
                    (*readable, *writable),
                    len(readable),
                    len(writable),
                    chain,
                    None if front else filled,
                )
            except (QueueFull, QueueBroken):
                break
            except InvalidArgument:  # no device can take it
                self._fail(waiting.popleft())
                self._queue.flush()
            else:
                waiting.popleft()
                added += 1
                if self._parts and not added % KICKED:
                    vq.kick()
        vq.kick()
        if vq.num_free < self._num:
            vq.attend(self._complete)

    def _complete(self) -> bool:
        """Give back what the device used; return whether that was anything."""
        vq, queue = self._vq, self._queue
        take, push, pushed = vq.get_buf_ctx, queue.push, 0
        if (used := take()) is None:
            return False
        while used is not None:
            push(*used)  # type: ignore[arg-type]  # nobody else adds
            pushed += 1
            if self._parts and not pushed % FLUSHED:
                queue.flush()
            used = take()
        queue.flush()
        if self.waiting:
            self._offer()
        elif vq.num_free == self._num:
            vq.attend(None)
        return True

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
        capacity = sum(map(zero, chain.writable))
        failure = self._failure
        if failure and capacity:
            last = chain.writable[-1]
            last[-len(failure) :] = failure[-len(last) :]
        self._queue.push(chain, 0 if self._front else capacity, capacity)
