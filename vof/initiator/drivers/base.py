# SPDX-License-Identifier: BSD-3-Clause
"""What all drivers share: the device is of their type, and is reset at the end of the block."""

from types import TracebackType
from typing import ClassVar

from vof.errors import InvalidArgument, VofError
from vof.virtio.device import VirtioDevice


class Driver:
    """Base of drivers that are asynchronous context managers.

    Attributes:
        device: the device underneath.

    Raises:
        InvalidArgument: the device is of another type.
    """

    device_id: ClassVar[int]
    kind: ClassVar[str]

    def __init__(self, device: VirtioDevice) -> None:
        if device.device_id != self.device_id:
            raise InvalidArgument(f"device type {device.device_id} is no {self.kind}")
        self.device = device

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.device.config_changed = None
        try:
            await self.device.reset()
        except VofError:
            pass  # a device out of reach needs none
