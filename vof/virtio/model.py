# SPDX-License-Identifier: BSD-3-Clause
"""The device's view: a model of a device, the queues it serves, the chains it gets.

A model knows neither who drives it nor through which medium: a server presents it. One model
object serves one driver; what several drivers share (a disk image) is behind it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from vof.errors import InvalidArgument
from vof.memory import HEAP, Pool
from vof.virtio.constants import VIRTIO_F_VERSION_1, bit


class Chain:
    """One buffer that the driver made available.

    Attributes:
        readable: the segments the device reads, in order.
        writable: the segments the device writes, in order.
        token: belongs to the queue the chain came from.

    How bytes are cut into segments carries no meaning (virtio 1.2, 2.7.4). The segments belong to
    the device until ``DeviceQueue.push``.
    """

    __slots__ = ("readable", "token", "writable")

    def __init__(
        self, readable: Sequence[memoryview], writable: Sequence[memoryview], token: Any
    ) -> None:
        self.readable = readable
        self.writable = writable
        self.token = token


class DeviceQueue(Protocol):
    """One virtqueue, as its device sees it."""

    async def receive(self) -> Sequence[Chain]:
        """Wait for at least one chain and return all that are there.

        Suspends. Cancelling it loses no chain. Pushes that were not flushed are flushed first.
        """
        ...

    def push(self, chain: Chain, written: int, filled: int | None = None) -> None:
        """Give a chain back as used; not visible before ``flush``. Each chain exactly once.

        Args:
            chain: from ``receive``; its segments belong to the driver again.
            written: the used length, counted from the start of the writable segments.
            filled: how many bytes from the start hold the device's data; more than ``written``
                for a device that reports less than it wrote. Default: ``written``. All these
                bytes must have been written: what was there before must not reach the driver.
        """
        ...

    def flush(self) -> None:
        """Make what was pushed visible; notify if wanted. Never suspends."""
        ...


class DeviceModel(ABC):
    """A device, as itself.

    Attributes:
        device_id: the device type (virtio 1.2, chapter 5).
        vendor_id: any number.
        device_features: what is offered; VIRTIO_F_VERSION_1 always belongs to it.
        features: what was negotiated; set by the server before ``serve``.
        queue_sizes: the largest size of each queue; its length is the number of queues.
        held_queues: indexes of queues whose buffers the model keeps for as long as it likes, to
            receive into: a target that drains does not wait for them.
        pool: where payload for this model must live.
        failure: what the driver must find at the very end of the writable part of a request that
            could not even be handed to the model: a status byte, on fabrics whose drivers look at
            nothing else. Empty for devices whose requests carry no status.
        config_changed: set by the server; call it when the configuration changed.
    """

    device_id: int
    vendor_id: int = 0x666F56  # "Vof"
    device_features: int = bit(VIRTIO_F_VERSION_1)
    features: int = 0
    queue_sizes: Sequence[int]
    held_queues: Collection[int] = ()
    pool: Pool = HEAP
    failure: bytes = b""
    config_changed: Callable[[], None]

    def __init__(self) -> None:
        self.config_changed = lambda: None

    def config(self) -> bytes:
        """Return the whole configuration space as it is now. Its length never changes."""
        return b""

    def write_config(self, offset: int, value: bytes) -> None:
        """The driver writes configuration; the bytes lie inside the space.

        Raises:
            InvalidArgument: that part is not writable, or the value is not possible.
        """
        raise InvalidArgument(f"configuration at {offset} is read-only")

    def status_changed(self, status: int) -> None:  # noqa: B027 - a hook, empty on purpose
        """The driver wrote the status byte (0 after a reset). Must not raise."""

    def close(self) -> None:  # noqa: B027 - a hook, empty on purpose
        """The driver is gone for good: let go of what is shared. Called once. Must not raise."""

    @abstractmethod
    async def serve(self, index: int, queue: DeviceQueue) -> None:
        """Serve one queue until cancelled; runs once for each queue that the driver set up.

        When it ends, nothing may touch a segment of this queue any more: a worker thread must be
        waited for. An exception is a bug of the model: it ends the queue and asks for a reset.
        """
