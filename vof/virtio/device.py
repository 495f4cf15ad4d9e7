# SPDX-License-Identifier: BSD-3-Clause
"""The driver's view of a device: Linux's config ops, asynchronous, and what is derived from them.

Initialisation is virtio 1.2, 3.1.1: ``initialize``, then ``find_vqs``, then ``ready``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vof.errors import FeatureError, NotSupported, RemoteProtocolError, VofError
from vof.memory import Pool
from vof.virtio.constants import (
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_F_VERSION_1,
    bit,
)
from vof.virtio.virtqueue import Callback, Virtqueue

CONFIG_RETRIES = 100


class VirtqueueInfo(NamedTuple):
    """What a driver wants of one queue, for ``find_vqs``.

    Attributes:
        name: for messages.
        callback: see ``Virtqueue.callback``.
        size: wanted size; 0 means the device's maximum.
    """

    name: str
    callback: Callback | None = None
    size: int = 0


class Refusal(NamedTuple):
    """A feature that ends at this process.

    Attributes:
        number: of the feature.
        name: of the feature.
        why: in a few words.
    """

    number: int
    name: str
    why: str


class VirtioDevice(ABC):
    """A device, as its driver sees it. Methods that are ``async`` may suspend.

    They raise ConnectionLost when the device is out of reach, and CommandError when it refuses.

    Attributes:
        device_id: the device type (virtio 1.2, chapter 5).
        vendor_id: who made the device.
        features: the negotiated feature bits; 0 before ``finalize_features``.
        vqs: the queues of the last ``find_vqs``.
        pool: where buffers for this device must live.
        config_changed: called when the device says that its configuration (or its need of a
            reset) changed; runs in the device's thread, must not suspend, must not raise.
        lost: called, with the reason, when a device that can ``recover`` is out of reach. Its
            queues are broken by ConnectionLost where their buffers come back at once; others stay.
        refused: what is offered behind this device, and not by it.
    """

    device_id: int
    vendor_id: int
    features: int
    vqs: list[Virtqueue]
    pool: Pool
    config_changed: Callable[["VirtioDevice"], None] | None
    lost: Callable[["VirtioDevice", VofError], None] | None = None
    required: int = bit(VIRTIO_F_VERSION_1)
    refused: Sequence[Refusal] = ()

    @abstractmethod
    async def get(self, offset: int, length: int) -> bytes:
        """Read configuration space. Use ``read_config`` for more than one field."""

    @abstractmethod
    async def set(self, offset: int, value: bytes) -> None:
        """Write configuration space."""

    @abstractmethod
    async def generation(self) -> int:
        """Return the configuration generation (virtio 1.2, 2.5)."""

    @abstractmethod
    async def get_status(self) -> int:
        """Return the device status byte."""

    @abstractmethod
    async def set_status(self, status: int) -> None:
        """Write the device status byte; not 0 (that is ``reset``)."""

    @abstractmethod
    async def reset(self) -> None:
        """Reset the device and wait until it is: nothing of before can touch a buffer any more.

        Its queues are gone; buffers in them come back by ``detach_unused_buf``.
        """

    @abstractmethod
    async def get_features(self) -> int:
        """Return the features that the device offers."""

    @abstractmethod
    async def finalize_features(self, features: int) -> None:
        """Tell the device which features the driver chose; sets ``self.features``."""

    @abstractmethod
    async def get_vq_size(self, index: int) -> int:
        """Return the largest size of queue ``index``, or 0 when the device has no such queue."""

    @abstractmethod
    async def find_vqs(self, infos: Sequence[VirtqueueInfo]) -> list[Virtqueue]:
        """Set up queues 0 to ``len(infos) - 1`` and return them; also kept in ``self.vqs``.

        Raises:
            NotSupported: the device has fewer queues.
        """

    async def setup_vq(self, index: int, info: VirtqueueInfo) -> Virtqueue:
        """Set up one queue, also of a device that is live; kept in ``self.vqs``.

        Raises:
            NotSupported: the device has no such queue, or cannot set up one alone.
            QueueBusy: it is set up already.
        """
        raise NotSupported(f"queue {index} ({info.name}): only all queues together")

    async def del_vq(self, index: int) -> None:
        """Take one queue down, if it is set up. Buffers come back by ``detach_unused_buf``."""
        raise NotSupported(f"queue {index}: only all queues together")

    @abstractmethod
    async def del_vqs(self) -> None:
        """Take the queues down. Buffers in them come back by ``detach_unused_buf``."""

    async def recover(self) -> bool:
        """After ``lost``: reach the device again, however long that takes.

        Returns:
            Whether queues and features are as they were; else it is to be initialised.
        """
        raise NotSupported("this device does not come back")

    # -- derived ------------------------------------------------------------------------------

    async def read_config(self, offset: int, length: int) -> bytes:
        """Read configuration space as one consistent snapshot (virtio 1.2, 2.5.1).

        Raises:
            RemoteProtocolError: the generation changed at every try.
        """
        before = await self.generation()
        for _ in range(CONFIG_RETRIES):
            data = await self.get(offset, length)
            after = await self.generation()
            if after == before:
                return data
            before = after
        raise RemoteProtocolError("the device's configuration never stands still")

    async def initialize(self, wanted: int, required: int = 0) -> int:
        """Reset the device, then negotiate features, up to FEATURES_OK.

        Args:
            wanted: features that the driver can use; those that the device offers are chosen.
            required: features it cannot do without. What ``self.required`` has is always both,
                and VIRTIO_F_VERSION_1 is always wanted.

        Returns:
            The negotiated features.

        Raises:
            FeatureError: a required feature is not offered, or the device refused the choice.
        """
        await self.reset()
        await self.set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE)
        await self.set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
        required |= self.required
        wanted |= bit(VIRTIO_F_VERSION_1)
        offered = await self.get_features()
        if missing := required & ~offered:
            raise FeatureError(f"the device does not offer needed features 0x{missing:x}")
        await self.finalize_features(offered & (wanted | required))
        status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK
        await self.set_status(status)
        if not await self.get_status() & VIRTIO_CONFIG_S_FEATURES_OK:
            raise FeatureError(f"the device refused the features 0x{self.features:x}")
        return self.features

    async def ready(self) -> None:
        """Set DRIVER_OK: the device goes live."""
        await self.set_status(
            VIRTIO_CONFIG_S_ACKNOWLEDGE
            | VIRTIO_CONFIG_S_DRIVER
            | VIRTIO_CONFIG_S_FEATURES_OK
            | VIRTIO_CONFIG_S_DRIVER_OK
        )

    def break_device(self, cause: BaseException | None = None) -> None:
        """Break every queue (Linux ``virtio_break_device``)."""
        for vq in self.vqs:
            vq.break_(cause)

    def unbreak_device(self) -> None:
        """Unbreak every queue (Linux ``__virtio_unbreak_device``)."""
        for vq in self.vqs:
            vq.unbreak()
