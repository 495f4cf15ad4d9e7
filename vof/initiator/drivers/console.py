# SPDX-License-Identifier: BSD-3-Clause
"""Driver of a console device with one port (virtio 1.2, 5.3).

Receive buffers are with the device all the time, for hours if need be. What the device wrote stays
in them until somebody reads: who does not read holds up the device, and nothing piles up here.
"""

from typing import Self

import trio

from vof.errors import InvalidArgument, NotSupported, QueueBroken, VofError
from vof.initiator.drivers.base import Driver
from vof.initiator.requests import RequestQueue
from vof.memory import Buffer
from vof.virtio.console import (
    CONFIG,
    EMERG_WR,
    EMERGENCY,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_SIZE,
    ConsoleConfig,
)
from vof.virtio.constants import VIRTIO_ID_CONSOLE, bit
from vof.virtio.device import VirtioDevice, VirtqueueInfo

WANTED = bit(VIRTIO_CONSOLE_F_SIZE, VIRTIO_CONSOLE_F_EMERG_WRITE)
BUFFERS = 32
BUFFER_BYTES = 4096
PIECE = 16 * 1024
"""Largest buffer that is transmitted, in bytes."""


class Console(Driver):
    """A started console: ``async with Console(device) as console:``.

    Many tasks may call at once: what one writes stays in one piece, and each byte is read once.

    Attributes:
        device: the device underneath.
        features: negotiated.
        size: columns and rows of the terminal at the other end; None where the device tells none.

    Raises:
        InvalidArgument: the device is of another type.
    """

    device_id = VIRTIO_ID_CONSOLE
    kind = "console"

    def __init__(
        self, device: VirtioDevice, buffers: int = BUFFERS, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        """Drive ``device``.

        Args:
            device: connected, not started.
            buffers: how many are kept with the device, if its queue has so many places.
            buffer_bytes: size of each.

        Raises:
            InvalidArgument: no buffer, or none of any size.
        """
        super().__init__(device)
        if buffers < 1 or buffer_bytes < 1:
            raise InvalidArgument(f"{buffers} buffers of {buffer_bytes} bytes")
        self.size: tuple[int, int] | None = None
        self._wanted = buffers, buffer_bytes
        self._reading = trio.Lock()
        self._writing = trio.Lock()

    async def __aenter__(self) -> Self:
        device = self.device
        self.features = await device.initialize(WANTED)
        if self.features >> VIRTIO_CONSOLE_F_SIZE & 1:
            config = ConsoleConfig.unpack(await device.read_config(0, CONFIG.size))
            self.size = config.cols, config.rows
        infos = [VirtqueueInfo("receiveq"), VirtqueueInfo("transmitq")]
        self._receiveq, transmitq = await device.find_vqs(infos)
        self._requests = RequestQueue(transmitq)
        await device.ready()
        count, size = self._wanted
        for _ in range(min(count, self._receiveq.get_vring_size())):
            self._offer(device.pool.alloc(size))
        self._receiveq.kick()
        return self

    def _offer(self, space: memoryview) -> None:
        """Give a buffer to the device. A broken queue takes none, as its next user is told."""
        try:
            self._receiveq.add_inbuf((space,), space)
        except QueueBroken:
            pass

    async def read(self) -> bytes:
        """Wait for bytes, at least one, and return what is there. Suspends.

        Cancelling it loses no byte.

        Raises:
            VofError: nothing can be read any more; it says why.
        """
        vq = self._receiveq
        async with self._reading:
            while True:
                await vq.wait_used()
                if data := self._take():
                    return data
                if vq.is_broken:
                    cause = vq.broken_by
                    raise cause if isinstance(cause, VofError) else QueueBroken(vq.name, cause)

    def _take(self) -> bytes:
        """Return what was received, and offer its buffers again. Never suspends."""
        vq = self._receiveq
        parts: list[bytes] = []
        for _ in range(vq.get_vring_size()):  # a fast device is not for ever
            if (used := vq.get_buf()) is None:
                break
            space: memoryview = used[0]  # type: ignore[assignment]  # nobody else adds
            parts.append(bytes(space[: used[1]]))
            self._offer(space)
        vq.kick()
        return b"".join(parts)

    async def write(self, data: Buffer) -> None:
        """Transmit ``data``; return when the device took all of it. Suspends.

        That is long where whoever is at the other end does not read. When it is cancelled, some
        of the bytes are with the device, or will be; ``data`` may be used again at once.

        Raises:
            VofError: the queue is broken; see ``maybe_executed``.
        """
        view = memoryview(data).cast("B")
        async with self._writing:
            for start in range(0, len(view), PIECE):
                await self._requests.request((bytes(view[start : start + PIECE]),), 1, 0)

    async def emergency_write(self, character: int) -> None:
        """Transmit one byte without a queue: it is lost where it cannot go out now. Suspends.

        Raises:
            NotSupported: the device does not offer this.
        """
        if not self.features >> VIRTIO_CONSOLE_F_EMERG_WRITE & 1:
            raise NotSupported("the device does not offer emergency writes")
        await self.device.set(EMERG_WR, EMERGENCY.pack(character))
