# SPDX-License-Identifier: BSD-3-Clause
"""Console device model (virtio 1.2, 5.3): bytes between two queues and a port.

Receive buffers may wait for hours. A task of each queue's own works on its chains, oldest first,
while the task that serves the queue goes on to take what comes and notices its end.

Back-pressure both ways: without receive buffers the port is not read; while the port takes nothing,
the chains of the transmit queue wait, within the bounds of that queue. What the port does with
bytes that nobody wants is its own: see ``ports``.
"""

import math
from collections.abc import Collection

import trio

from vof.errors import InvalidArgument
from vof.target.devices.ports import Port
from vof.virtio.console import (
    EMERG_WR,
    RECEIVEQ,
    VIRTIO_CONSOLE_F_EMERG_WRITE,
    VIRTIO_CONSOLE_F_SIZE,
    ConsoleConfig,
)
from vof.virtio.constants import VIRTIO_F_VERSION_1, VIRTIO_ID_CONSOLE, bit
from vof.virtio.model import Chain, DeviceModel, DeviceQueue


class ConsoleModel(DeviceModel):
    """A console with one port."""

    device_id = VIRTIO_ID_CONSOLE
    held_queues: Collection[int] = (RECEIVEQ,)

    def __init__(self, port: Port, *, cols: int = 0, rows: int = 0, queue_size: int = 128) -> None:
        """Connect a device to ``port``.

        Args:
            port: taken until ``close``.
            cols: width that the driver is told, in characters; 0, as for ``rows``, tells nothing.
            rows: height that the driver is told.
            queue_size: of each queue.

        Raises:
            InvalidArgument: a size that virtio-console cannot express.
            VofError: the port has a user already.
        """
        super().__init__()
        if not (0 <= cols < 1 << 16 and 0 <= rows < 1 << 16):
            raise InvalidArgument(f"{cols} columns and {rows} rows; 0 to 65535 each")
        port.take()
        self._port = port
        self._config = ConsoleConfig(cols, rows).pack()
        self.queue_sizes = (queue_size, queue_size)
        self.device_features = bit(VIRTIO_F_VERSION_1, VIRTIO_CONSOLE_F_EMERG_WRITE)
        if cols and rows:
            self.device_features |= bit(VIRTIO_CONSOLE_F_SIZE)

    def config(self) -> bytes:
        """Return the configuration space."""
        return self._config

    def write_config(self, offset: int, value: bytes) -> None:
        """An emergency write: one character, also of a driver that has not started the device."""
        if offset != EMERG_WR:
            raise InvalidArgument(f"configuration at {offset} is read-only")
        self._port.write_now(value[:1])

    def close(self) -> None:
        """Give the port back."""
        self._port.release()

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """See ``DeviceModel.serve``."""
        lane, chains = trio.open_memory_channel[Chain](math.inf)  # bounded by the queue itself
        work = self._receive if index == RECEIVEQ else self._transmit
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, queue, chains)
            while True:
                for chain in await queue.receive():
                    lane.send_nowait(chain)
                del chain  # whoever waits holds no memory of the queue

    async def _receive(self, queue: DeviceQueue, chains: trio.MemoryReceiveChannel[Chain]) -> None:
        """Fill the driver's buffers, each with what is there."""
        while True:
            chain = await chains.receive()
            written = 0
            if any(map(len, chain.writable)):
                written = await self._port.read(chain.writable)
            queue.push(chain, written)
            del chain
            queue.flush()

    async def _transmit(self, queue: DeviceQueue, chains: trio.MemoryReceiveChannel[Chain]) -> None:
        """Hand on the driver's bytes."""
        while True:
            chain = await chains.receive()
            await self._port.write(chain.readable)
            queue.push(chain, 0)
            del chain
            queue.flush()
