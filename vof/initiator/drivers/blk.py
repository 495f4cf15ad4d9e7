# SPDX-License-Identifier: BSD-3-Clause
"""Driver of a block device (virtio 1.2, 5.2).

Framing carries no meaning, and the fewest buffers are the fastest: a read is a header and one
writable buffer, for data and status byte together. Only where a device bounds its segments
(size_max), data is cut to them, and the status byte stands alone; so it does for a device without
VIRTIO_F_VERSION_1, to which framing is part of the format.

Whose a buffer is. ``read`` gives the queue memory that nobody else has, so it can be cancelled at
any time. ``read_into`` and ``write`` lend the caller's; they return or raise only when every piece
of it came back, unless they are cancelled.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Self

import trio

from vof.errors import DeviceError, InvalidArgument, NotSupported, RemoteProtocolError
from vof.initiator.drivers.base import Driver
from vof.initiator.drivers.pieces import in_pieces
from vof.initiator.requests import RequestQueue
from vof.memory import Buffer
from vof.virtio.blk import (
    CONFIG,
    RANGE,
    REQUEST,
    SECTOR,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
    BlkConfig,
    status_of,
)
from vof.virtio.constants import VIRTIO_F_VERSION_1, VIRTIO_ID_BLOCK, bit
from vof.virtio.device import VirtioDevice, VirtqueueInfo

WANTED = bit(
    VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_WRITE_ZEROES,
)
PIECE = 1 << 20
"""Largest request, in bytes, whatever the device allows."""


class Blk(Driver):
    """A started block device: ``async with Blk(device, queues=2) as disk:``.

    Offsets and lengths are in bytes, multiples of 512. Many tasks may call at once.

    Attributes:
        device: the device underneath.
        capacity: bytes, as read last: after a configuration change, by the next call.
        block_size: what the device takes for the size of a block, in bytes.
        read_only: writing is refused.
        num_queues: queues in use.
        features: negotiated.
        config: as read last.
        resized: called when the device's configuration changed: ``await refresh()`` tells the new
            capacity. Must not suspend.

    Raises:
        InvalidArgument: the device is of another type.
    """

    device_id = VIRTIO_ID_BLOCK
    kind = "block device"

    def __init__(self, device: VirtioDevice, queues: int = 1, queue_size: int = 0) -> None:
        super().__init__(device)
        if queues < 1:
            raise InvalidArgument(f"{queues} queues")
        self.resized: Callable[[], None] | None = None
        self._wanted = queues, queue_size
        self._stale = False

    async def __aenter__(self) -> Self:
        device = self.device
        device.config_changed = self._config_changed
        self.features = await device.initialize(WANTED)
        await self._read_config()
        has = self._has
        most = self.config.num_queues if has(VIRTIO_BLK_F_MQ) else 1
        count, size = self._wanted
        self.num_queues = min(count, max(most, 1))
        self.block_size = self.config.blk_size if has(VIRTIO_BLK_F_BLK_SIZE) else SECTOR
        self.read_only = has(VIRTIO_BLK_F_RO)
        limited = has(VIRTIO_BLK_F_SIZE_MAX) and self.config.size_max  # 0: no device means that
        segment = self.config.size_max if limited else PIECE
        segments = self.config.seg_max if has(VIRTIO_BLK_F_SEG_MAX) else 1
        self._segment = max(segment, SECTOR)
        self._piece = min(PIECE, self._segment * max(segments, 1)) // SECTOR * SECTOR
        # With its status byte, a read of this many bytes is still one segment.
        self._single = min(self._piece, self._segment - bool(limited))
        if not has(VIRTIO_F_VERSION_1):  # framing carries meaning to such a device
            self._single = 0
        infos = [VirtqueueInfo(f"requestq{n}", size=size) for n in range(self.num_queues)]
        self._queues = [RequestQueue(vq) for vq in await device.find_vqs(infos)]
        self._next = cycle(self._queues).__next__
        await device.ready()
        return self

    def _has(self, number: int) -> bool:
        return bool(self.features >> number & 1)

    def _config_changed(self, device: VirtioDevice) -> None:
        self._stale = True
        if self.resized is not None:
            self.resized()

    async def _read_config(self) -> None:
        self._stale = False
        try:
            data = await self.device.read_config(0, CONFIG.size)
        except BaseException:
            self._stale = True
            raise
        self.config = BlkConfig.unpack(data)
        self.capacity = self.config.capacity * SECTOR

    async def refresh(self) -> int:
        """Read the configuration again; return the capacity in bytes. Suspends."""
        await self._read_config()
        return self.capacity

    # -- data ---------------------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytearray:
        """Return ``length`` bytes from ``offset``. Suspends.

        Cancelling it leaves the request with the device; its buffer is not used again.

        Raises:
            InvalidArgument: not multiples of 512, or beyond the end.
            DeviceError: the device says that it failed.
            VofError: the queue broke; see ``maybe_executed``.
        """
        past = not 0 <= offset <= self.capacity - length
        if past or length < 0 or (offset | length) & 511 or self._stale:
            await self._check(offset, length)
        if not 0 < length <= self._single:
            data = bytearray(length)
            await self.read_into(offset, data)
            return data
        answer = bytearray(length + 1)
        header = REQUEST.pack(VIRTIO_BLK_T_IN, 0, offset >> 9)
        if await self._next().request((header, answer), 1, 1) <= length or answer[length]:
            self._failed(answer[length])
        del answer[length]
        return answer

    async def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer`` from ``offset``. Suspends. Raises as ``read``.

        When it is cancelled, the device may still write into ``buffer``, until it is reset.
        """
        view = memoryview(buffer).cast("B")
        await self._check(offset, len(view))

        async def piece(start: int, stop: int) -> None:
            status = bytearray(1)
            header = REQUEST.pack(VIRTIO_BLK_T_IN, 0, (offset + start) >> 9)
            sgs: list[Buffer] = [header, *self._segments(view, start, stop), status]
            written = await self._next().request(sgs, 1, len(sgs) - 1)
            if written <= stop - start or status[0]:
                self._failed(status[0])

        await in_pieces(len(view), self._piece, piece)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write ``data`` at ``offset``. Suspends. Raises as ``read``.

        ``data`` must not change before it returns; when it is cancelled, not before the device
        is reset.
        """
        view = memoryview(data).cast("B")
        await self._check(offset, len(view), write=True)

        async def piece(start: int, stop: int) -> None:
            header = REQUEST.pack(VIRTIO_BLK_T_OUT, 0, (offset + start) >> 9)
            await self._simple((header, *self._segments(view, start, stop)))

        await in_pieces(len(view), self._piece, piece)

    async def flush(self) -> None:
        """Make what was written stable; nothing to do where the device has no volatile cache."""
        if self._has(VIRTIO_BLK_F_FLUSH):
            await self._simple((REQUEST.pack(VIRTIO_BLK_T_FLUSH, 0, 0),))
        else:
            await trio.lowlevel.checkpoint()

    async def discard(self, offset: int, length: int) -> None:
        """Say that these bytes are not needed any more. Raises NotSupported, else as ``read``."""
        most = self.config.max_discard_sectors
        await self._range(VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_T_DISCARD, offset, length, most, 0)

    async def write_zeroes(self, offset: int, length: int, unmap: bool = False) -> None:
        """Write zeroes; ``unmap`` allows to free the space. Raises as ``discard``."""
        flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if unmap else 0
        most = self.config.max_write_zeroes_sectors
        await self._range(
            VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_T_WRITE_ZEROES, offset, length, most, flags
        )

    async def get_id(self) -> str:
        """Return the device's name for itself, up to 20 bytes. Suspends."""
        name, status = bytearray(VIRTIO_BLK_ID_BYTES), bytearray(1)
        request = (REQUEST.pack(VIRTIO_BLK_T_GET_ID, 0, 0), name, status)
        if await self._next().request(request, 1, 2) <= len(name) or status[0]:
            self._failed(status[0])
        return name.partition(b"\0")[0].decode(errors="replace")

    # -- parts --------------------------------------------------------------------------------

    def _segments(self, view: memoryview, start: int, stop: int) -> Sequence[memoryview]:
        """Cut a piece of the data to what the device takes as one segment."""
        size = self._segment
        if stop - start <= size:
            return (view[start:stop],)
        return [view[at : min(at + size, stop)] for at in range(start, stop, size)]

    async def _simple(self, readable: tuple[Buffer, ...]) -> None:
        """A request that is answered with nothing but its status."""
        status = bytearray(1)
        written = await self._next().request((*readable, status), len(readable), 1)
        if not written or status[0]:
            self._failed(status[0])

    async def _range(
        self, feature: int, kind: int, offset: int, length: int, most: int, flags: int
    ) -> None:
        """A discard or write-zeroes, in as many requests as the device wants."""
        if not self._has(feature):
            raise NotSupported("the device does not offer this")
        await self._check(offset, length, write=True)
        step = max(most, 1) * SECTOR
        for start in range(offset, offset + length, step):
            sectors = min(step, offset + length - start) // SECTOR
            body = RANGE.pack(start // SECTOR, sectors, flags)
            await self._simple((REQUEST.pack(kind, 0, 0) + body,))

    async def _check(self, offset: int, length: int, write: bool = False) -> None:
        """Raise InvalidArgument for a place that is none."""
        if self._stale:
            await self._read_config()
        if offset % SECTOR or length % SECTOR:
            raise InvalidArgument(f"offset {offset}, length {length}: not multiples of {SECTOR}")
        if not 0 <= offset <= self.capacity - length or length < 0:
            raise InvalidArgument(
                f"offset {offset}, length {length}: the disk has {self.capacity} bytes"
            )
        if write and self.read_only:
            raise InvalidArgument("the disk is read-only")

    def _failed(self, status: int) -> None:
        """Raise what a status byte, or its absence, stands for."""
        if not status:
            raise RemoteProtocolError("the device used a request without writing its status")
        raise DeviceError(f"the device reports {status_of(status)}", status)
