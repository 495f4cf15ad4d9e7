# SPDX-License-Identifier: BSD-3-Clause
"""``Bridge``: any device that somebody drives, as a model that a server presents.

A local vhost-user device so reaches the fabric, and a remote device is passed on: the same ops
table is a ring in shared memory on one side and capsules on the other, and nothing here can tell.
A queue is set up at the device when it is served, and taken down before that ends, so that nothing
touches a segment any more.
"""

import logging
from collections.abc import Sequence

import trio

from vof.bridge.relay import Relay
from vof.errors import CommandError, InvalidArgument, NotSupported, VofError
from vof.virtio.constants import (
    DEVICE_NAMES,
    RING_FEATURES,
    VIRTIO_F_VERSION_1,
    VIRTIO_ID_CONSOLE,
    VIRTIO_ID_NET,
    VIRTIO_ID_RNG,
    bit,
)
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.model import DeviceModel, DeviceQueue

log = logging.getLogger("vof.bridge")

FROM_THE_FRONT = {VIRTIO_ID_NET, VIRTIO_ID_CONSOLE, VIRTIO_ID_RNG}
"""Types whose devices fill buffers from the front: what is beyond the used length is nothing."""
IMPOSSIBLE = {
    5: "a balloon takes memory from its own machine",
    27: "persistent memory is shared memory, which cannot cross a fabric",
}
"""Device types that are refused, and why."""
CONFIG_MAX = 256


class Bridge(DeviceModel):
    """A device as a model. Made by ``Bridge.open``; one driver at a time.

    Attributes:
        device: the device underneath.
    """

    def __init__(
        self, device: VirtioDevice, features: int, sizes: Sequence[int], config: bytes
    ) -> None:
        super().__init__()
        self.device = device
        self.device_id = device.device_id
        self.vendor_id = device.vendor_id
        self.device_features = features
        self.queue_sizes = sizes
        self.pool = device.pool
        self._config = config
        self._live = False
        self._turn = trio.Lock()
        self._nursery: trio.Nursery
        device.config_changed = self._changed

    @classmethod
    async def open(cls, device: VirtioDevice, nursery: trio.Nursery) -> "Bridge":
        """Learn what the device is. Suspends.

        Args:
            device: connected, not initialised.
            nursery: for what concerns its configuration; outlives the bridge.

        Raises:
            NotSupported: such a device cannot cross a fabric.
            VofError: as the device's own operations.
        """
        kind = device.device_id
        if why := IMPOSSIBLE.get(kind):
            raise NotSupported(f"a {DEVICE_NAMES.get(kind, kind)} device: {why}")
        features = await device.get_features() & ~RING_FEATURES | bit(VIRTIO_F_VERSION_1)
        sizes: list[int] = []
        while size := await device.get_vq_size(len(sizes)):
            sizes.append(size)
        bridge = cls(device, features, sizes, await _whole_config(device))
        bridge._nursery = nursery
        return bridge

    # -- configuration ------------------------------------------------------------------------

    def config(self) -> bytes:
        """Return the device's configuration, as read last."""
        return self._config

    def write_config(self, offset: int, value: bytes) -> None:
        """Pass a write on; the device may still refuse it, which is logged."""
        if not self._config:
            raise InvalidArgument("the device has no configuration")
        self._config = self._config[:offset] + value + self._config[offset + len(value) :]
        self._nursery.start_soon(self._write_config, offset, value)

    async def _write_config(self, offset: int, value: bytes) -> None:
        try:
            await self.device.set(offset, value)
        except VofError as error:
            log.warning("writing %d bytes of configuration at %d: %s", len(value), offset, error)
            await self._read_config()

    def _changed(self, device: VirtioDevice) -> None:
        self._nursery.start_soon(self._read_config)

    async def _read_config(self) -> None:
        try:
            self._config = await self.device.read_config(0, len(self._config))
        except VofError as error:
            log.warning("reading the configuration: %s", error)
        self.config_changed()

    # -- life ---------------------------------------------------------------------------------

    def status_changed(self, status: int) -> None:
        """After a reset, the device starts anew with the next queue."""
        if not status:
            self._live = False

    async def _start(self) -> None:
        """Bring the device to DRIVER_OK with the negotiated features."""
        async with self._turn:
            if not self._live:
                await self.device.initialize(self.features)
                await self.device.ready()
                self._live = True

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """Relay one queue. See ``DeviceModel.serve``."""
        await self._start()
        device = self.device
        vq = await device.setup_vq(index, VirtqueueInfo(f"bridge{index}"))
        try:
            await Relay(queue, self.device_id in FROM_THE_FRONT).run(vq)
        finally:
            with trio.CancelScope(shield=True):
                await device.del_vq(index)


async def _whole_config(device: VirtioDevice) -> bytes:
    """Read the configuration space, whose size nobody tells."""
    size, step = 0, CONFIG_MAX
    while step:
        try:
            await device.get(size + step - 1, 1)
            size += step
        except (CommandError, InvalidArgument):
            pass
        step //= 2
    return await device.read_config(0, size) if size else b""
