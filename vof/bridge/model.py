# SPDX-License-Identifier: BSD-3-Clause
"""``Bridge``: any device that somebody drives, as a model that a server presents.

A local vhost-user device so reaches the fabric, and a remote device is passed on: the same ops
table is a ring in shared memory on one side and capsules on the other, and nothing here can tell.

A queue is set up at the device when it is served, and taken down before that ends, so that nothing
touches a segment any more. Where a device comes back after it was lost, its driver sees no more
than a pause: what was in flight waits, and happens to it what ``replay`` says.
"""

import logging
from collections.abc import Sequence
from time import monotonic

import trio

from vof.bridge.relay import Relay
from vof.errors import (
    CommandError,
    ConnectionLost,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    QueueBusy,
    VofError,
)
from vof.virtio.constants import DEVICE_NAMES, VIRTIO_F_VERSION_1, bit
from vof.virtio.crossing import CROSSINGS, IMPOSSIBLE, UNKNOWN, Replay, refusals
from vof.virtio.device import VirtioDevice, VirtqueueInfo
from vof.virtio.model import DeviceModel, DeviceQueue
from vof.virtio.virtqueue import Virtqueue

log = logging.getLogger("vof.bridge")

CONFIG_MAX = 256


class Bridge(DeviceModel):
    """A device as a model. Made by ``Bridge.open``; one driver at a time.

    Attributes:
        device: the device underneath.
        name: for messages.
        replay: what happens to requests in flight when the device is lost and comes back.
        taken: some driver has it.
        losses: how often the device was lost.
        replayed: requests that were in flight then, and went to the device once more.
        failed: requests that were completed as failed for it.
        lost_since: on the monotonic clock, or None: the device is there.
        why: of the last loss.
    """

    def __init__(
        self,
        device: VirtioDevice,
        nursery: trio.Nursery,
        features: int,
        sizes: Sequence[int],
        config: bytes,
        replay: Replay | None = None,
        name: str = "bridge",
    ) -> None:
        super().__init__()
        kind = CROSSINGS.get(device.device_id, UNKNOWN)
        self.device = device
        self.name = name
        self.device_id = device.device_id
        self.vendor_id = device.vendor_id
        self.device_features = features
        self.queue_sizes = sizes
        self.held_queues = kind.held_queues(len(sizes))
        self.failure = kind.failure
        self.pool = device.pool
        self.replay = replay or kind.replay
        self.taken = False
        self.losses = self.replayed = self.failed = 0
        self.lost_since: float | None = None
        self.why = ""
        self._front = kind.front
        self._config = config
        self._live = False  # the device has what was negotiated
        self._keeps = False  # it had, when it was lost
        self._there = trio.Event()
        self._there.set()
        self._turn = trio.Lock()
        self._nursery = nursery
        device.config_changed = self._changed
        device.lost = self._lost

    @classmethod
    async def open(
        cls,
        device: VirtioDevice,
        nursery: trio.Nursery,
        replay: Replay | None = None,
        name: str = "bridge",
    ) -> "Bridge":
        """Learn what the device is. Suspends.

        Args:
            device: connected, not initialised.
            nursery: for what concerns its configuration; outlives the bridge.
            replay: see ``Bridge``; None: as is right for the type.
            name: for messages.

        Raises:
            NotSupported: such a device cannot cross a fabric.
            VofError: as the device's own operations.
        """
        kind = device.device_id
        if why := IMPOSSIBLE.get(kind):
            text = f"a {DEVICE_NAMES.get(kind, kind)} device cannot cross a fabric: {why}"
            raise NotSupported(f"{name}: {text}")
        offered = await device.get_features()
        refused = [*device.refused, *refusals(kind, offered)]
        for _, feature, why in refused:
            log.info("%s: %s stays here: %s", name, feature, why)
        masked = bit(*(number for number, _, _ in refused))
        features = offered & ~masked | bit(VIRTIO_F_VERSION_1)
        sizes: list[int] = []
        while size := await device.get_vq_size(len(sizes)):
            sizes.append(size)
        config = await _whole_config(device)
        return cls(device, nursery, features, sizes, config, replay, name)

    def take(self) -> "Bridge":
        """Return this model, for one more driver, which ends with ``close``.

        Raises:
            QueueBusy: another driver has it.
        """
        if self.taken:
            raise QueueBusy(f"{self.name}: the device has one driver at a time, and another has it")
        self.taken = True
        return self

    def close(self) -> None:
        """The driver is gone."""
        self.taken = False

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
            what = "%s: writing %d bytes of configuration at %d: %s"
            log.warning(what, self.name, len(value), offset, error)
            await self._read_config()

    def _changed(self, device: VirtioDevice) -> None:
        self._nursery.start_soon(self._read_config)

    async def _read_config(self) -> None:
        try:
            self._config = await self.device.read_config(0, len(self._config))
        except VofError as error:
            log.warning("%s: reading the configuration: %s", self.name, error)
        self.config_changed()

    # -- loss ---------------------------------------------------------------------------------

    def _lost(self, device: VirtioDevice, error: VofError) -> None:
        """The device is out of reach: nothing goes on until it is there again."""
        if self._there.is_set():
            self._there = trio.Event()
            self._keeps = self._live
        self.losses += 1
        self.lost_since = monotonic()
        self.why = str(error)
        self._live = False
        log.warning("%s: lost: %s", self.name, self.why)
        self._nursery.start_soon(self._recover)

    async def _recover(self) -> None:
        losses = self.losses
        resumed = await self.device.recover()
        if self.losses != losses:  # it was lost again at once, and is recovered again
            return
        self.pool = self.device.pool
        if resumed:
            self._live = self._keeps
        assert self.lost_since is not None
        what = "%s: back after %.1f s%s"
        how = ", and goes on with what is in flight" if resumed else ""
        log.info(what, self.name, monotonic() - self.lost_since, how)
        self.lost_since = None
        self._there.set()
        await self._read_config()

    # -- life ---------------------------------------------------------------------------------

    def status_changed(self, status: int) -> None:
        """After a reset, the device starts anew with the next queue."""
        if not status:
            self._live = self._keeps = False

    async def _start(self) -> None:
        """Bring the device to DRIVER_OK with the negotiated features, as soon as it is there."""
        async with self._turn:
            while not self._live:
                if not self._there.is_set():
                    await self._there.wait()
                    continue
                losses = self.losses
                try:
                    await self.device.initialize(self.features, self.features)
                    await self.device.ready()
                except VofError:
                    if self._there.is_set():
                        raise
                else:
                    self._live = self.losses == losses

    async def _set_up(self, index: int) -> Virtqueue:
        """Set a queue up, at a device that is live."""
        while True:
            await self._start()
            try:
                return await self.device.setup_vq(index, VirtqueueInfo(f"{self.name}.{index}"))
            except VofError:
                if self._there.is_set():
                    raise

    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """Relay one queue. See ``DeviceModel.serve``.

        Raises:
            VofError: the device cannot go on; it needs a reset.
        """
        relay = Relay(queue, self._front, self.failure)
        while True:
            vq = await self._set_up(index)
            try:
                await relay.run(vq)
            except QueueBroken as error:
                if not isinstance(error.cause, ConnectionLost):
                    raise
            finally:
                with trio.CancelScope(shield=True):
                    await self.device.del_vq(index)
            self._replay(index, relay, relay.take_back(vq))

    def _replay(self, index: int, relay: Relay, count: int) -> None:
        """Decide about requests that were in flight when the device was lost."""
        if self.replay == "resubmit" or (index in self.held_queues and self.replay == "fail"):
            self.replayed += count
        elif self.replay == "fail":
            self.failed += count
            relay.fail(count)
        else:
            text = f"{self.name}: the device came back and knows nothing of what was before"
            raise ConnectionLost(f"{text} (replay = {self.replay})")


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
