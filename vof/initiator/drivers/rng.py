# SPDX-License-Identifier: BSD-3-Clause
"""Driver of an entropy device (virtio 1.2, 5.4)."""

from typing import Self

from vof.errors import DeviceError, InvalidArgument
from vof.initiator.drivers.base import Driver
from vof.initiator.requests import RequestQueue
from vof.virtio.constants import VIRTIO_ID_RNG
from vof.virtio.device import VirtioDevice, VirtqueueInfo

PIECE = 16 * 1024
MOST_EMPTY = 8


class Rng(Driver):
    """A started entropy device: ``async with Rng(device) as rng:``.

    Raises:
        InvalidArgument: the device is of another type.
    """

    device_id = VIRTIO_ID_RNG
    kind = "entropy device"

    def __init__(self, device: VirtioDevice) -> None:
        super().__init__(device)
        self._requests: RequestQueue

    async def __aenter__(self) -> Self:
        await self.device.initialize(0)
        (vq,) = await self.device.find_vqs([VirtqueueInfo("requestq")])
        await self.device.ready()
        self._requests = RequestQueue(vq)
        return self

    async def read(self, length: int) -> bytes:
        """Return ``length`` random bytes. Suspends.

        Raises:
            DeviceError: the device answers without a byte, again and again.
        """
        if length < 0:
            raise InvalidArgument(f"{length} bytes")
        data = bytearray()
        empty = 0
        while len(data) < length:
            buffer = bytearray(min(length - len(data), PIECE))
            written = await self._requests.request([buffer], 0, 1)
            data += buffer[:written]
            empty = 0 if written else empty + 1
            if empty == MOST_EMPTY:
                raise DeviceError("the device gives no entropy", 0)
        return bytes(data)
