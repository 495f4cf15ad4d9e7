# SPDX-License-Identifier: BSD-3-Clause
"""A device model without a will of its own: the check decides what the device does, and when."""

from collections import deque
from collections.abc import Sequence

import trio

from vof.conformance.rules import Failed, soon
from vof.errors import InvalidArgument
from vof.virtio import Chain, DeviceModel, DeviceQueue
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit

FEATURES = bit(0, 5, 23, 50, 63)
"""Device type features that ``ScriptModel`` offers; they mean nothing."""

UNOFFERED = bit(7)
READ_ONLY = 8
"""So many bytes at the start of the configuration are read-only, the others writable."""


class Lane:
    """One run of ``serve``: the device's end of a queue, in the hands of a check.

    ``serve`` always stands in ``receive``, as a model should; what it receives waits here.

    Attributes:
        queue: the device's view of the queue.
        waiting: chains that arrived and that no ``take`` has taken.
        ended: set when ``serve`` has ended.
    """

    def __init__(self, queue: DeviceQueue) -> None:
        self.queue = queue
        self.waiting: deque[Chain] = deque()
        self.ended = trio.Event()
        self._news = trio.Event()
        self._receiving = trio.CancelScope()

    async def run(self) -> None:
        """Receive until cancelled."""
        try:
            while True:
                with trio.CancelScope() as self._receiving:
                    self.waiting.extend(await self.queue.receive())
                self._tell()
        finally:
            self.ended.set()
            self._tell()

    def interrupt(self) -> None:
        """Cancel the ``receive`` that runs now; another one follows."""
        self._receiving.cancel()

    async def take(self, count: int = 1) -> list[Chain]:
        """Wait until ``count`` chains have arrived and return the first ``count``.

        Raises:
            Failed: they did not, or the queue ended.
        """
        with soon(f"{count} available buffers reach the device"):
            while len(self.waiting) < count:
                if self.ended.is_set():
                    raise Failed("the device's end of the queue ended while the queue was in use")
                await self._news.wait()
        return [self.waiting.popleft() for _ in range(count)]

    def use(
        self, chain: Chain, data: bytes = b"", written: int | None = None, *, flush: bool = True
    ) -> None:
        """Write ``data`` to the chain and give it back.

        Args:
            chain: from ``take``.
            data: goes to the start of the writable segments.
            written: the used length; default: all of ``data``, never more.
            flush: make it visible at once.
        """
        start = 0
        for segment in chain.writable:
            part = data[start : start + len(segment)]
            segment[: len(part)] = part
            start += len(part)
        if written is None or written == len(data):
            self.queue.push(chain, len(data))
        else:
            self.queue.push(chain, written, len(data))
        if flush:
            self.queue.flush()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


class ScriptModel(DeviceModel):
    """A device that does what a check tells it. Runs in the check's trio loop.

    Attributes:
        space: the configuration; change it with ``change_config``.
        statuses: every status byte that the server passed on.
        closes: how often ``close`` was called.
    """

    device_id = 60
    vendor_id = 0x1AF4_5678
    device_features = bit(VIRTIO_F_VERSION_1) | FEATURES

    def __init__(self, queue_sizes: Sequence[int]) -> None:
        super().__init__()
        self.queue_sizes = tuple(queue_sizes)
        self.space = bytearray(range(24))
        self.statuses: list[int] = []
        self.closes = 0
        self._lanes = [trio.open_memory_channel[Lane](64) for _ in self.queue_sizes]

    def config(self) -> bytes:
        """Return the configuration."""
        return bytes(self.space)

    def write_config(self, offset: int, value: bytes) -> None:
        """Take a write to the writable part."""
        if offset < READ_ONLY:
            raise InvalidArgument(f"configuration at {offset} is read-only")
        self.space[offset : offset + len(value)] = value

    def change_config(self, offset: int, value: bytes) -> None:
        """Change the configuration as a device does, and tell the driver."""
        self.space[offset : offset + len(value)] = value
        self.config_changed()

    def status_changed(self, status: int) -> None:
        """Note the status."""
        self.statuses.append(status)

    def close(self) -> None:
        """Note the end."""
        self.closes += 1

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """Hand the queue to whoever waits in ``lane``."""
        lane = Lane(queue)
        self._lanes[index][0].send_nowait(lane)
        await lane.run()

    async def lane(self, index: int) -> Lane:
        """Return the next run of ``serve`` for this queue that was not returned yet.

        Raises:
            Failed: no server called ``serve``.
        """
        with soon(f"the device serves queue {index}"):
            return await self._lanes[index][1].receive()
