# SPDX-License-Identifier: BSD-3-Clause
"""The shortest way to a device of one's own: bytes in, bytes out."""

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from typing import cast

import trio

from vof.memory import Buffer
from vof.virtio.model import Chain, DeviceModel, DeviceQueue


class RequestModel(DeviceModel):
    """A device that answers each request by itself, whichever queue it came through.

    A subclass sets ``device_id`` and has ``handle``; for the rest, see ``DeviceModel``. A plain
    ``handle`` answers in order, inline. With ``async def handle`` each request has a task of its
    own, as many as the queue holds, and is answered when it is done, in any order.
    """

    queue_sizes: Sequence[int] = (128,)

    @abstractmethod
    def handle(self, request: bytes, room: int) -> Buffer | Awaitable[Buffer]:
        """Answer a request.

        Must not block: everything else waits meanwhile. What takes time is ``async def``, with
        trio; what blocks belongs into ``trio.to_thread``. Cancelled at a reset, or when the
        driver is gone. An exception is a bug, whatever was asked for: it ends the queue and asks
        for a reset.

        Args:
            request: what the driver sent; a copy.
            room: how many bytes the driver has room for.

        Returns:
            The answer, whose length the driver is told; what is longer than ``room`` is cut off.
        """

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """See ``DeviceModel.serve``."""
        if inspect.iscoroutinefunction(self.handle):
            async with trio.open_nursery() as nursery:
                while True:
                    for chain in await queue.receive():
                        nursery.start_soon(self._handle, chain, queue)
        while True:
            for chain in await queue.receive():
                self._answer(chain, queue, self.handle(*_ask(chain)))
            queue.flush()

    async def _handle(self, chain: Chain, queue: DeviceQueue) -> None:
        self._answer(chain, queue, await cast("Awaitable[Buffer]", self.handle(*_ask(chain))))
        queue.flush()

    def _answer(self, chain: Chain, queue: DeviceQueue, answer: object) -> None:
        """Give a chain back with its answer. Raises TypeError for what is no answer."""
        if not isinstance(answer, bytes | bytearray | memoryview):
            raise TypeError(f"{type(self).__name__}.handle returned {answer!r:.80}, not bytes")
        rest, written = memoryview(answer).cast("B"), 0
        for view in chain.writable:
            size = min(len(view), len(rest))
            view[:size] = rest[:size]
            rest = rest[size:]
            written += size
        queue.push(chain, written)


def _ask(chain: Chain) -> tuple[bytes, int]:
    """Return what ``handle`` takes."""
    return b"".join(chain.readable), sum(map(len, chain.writable))
