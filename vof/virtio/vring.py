# SPDX-License-Identifier: BSD-3-Clause
"""What the driver's side of any ring is: tokens, ends, sleeping, and buffers outside the region.

Split and packed rings differ in how a chain is written and how a used one is found; the rest is
here. Nothing that stands in shared memory is believed: which descriptors a chain has is kept here.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence

from vof.errors import (
    InvalidArgument,
    NotPermitted,
    NotSupported,
    QueueBroken,
    QueueBusy,
    QueueFull,
    RingError,
    VofError,
)
from vof.memory import Buffer, Region
from vof.virtio.layout import Bell
from vof.virtio.virtqueue import Callback, Recycle, Virtqueue

Restart = Callable[[int], Awaitable[memoryview]]
"""Stops the ring at its device, and returns memory for one of another size; ``started`` follows."""


class Entry:
    """A chain in the ring.

    Attributes:
        data: the driver's token.
        ctx: its context.
        count: descriptors it takes.
        room: writable bytes.
        held: pieces of the region that live as long as the chain.
        back: where to copy what was written into pieces that stand for the driver's buffers.
    """

    __slots__ = ("back", "count", "ctx", "data", "held", "room")

    def __init__(self, data: object, ctx: object, count: int, room: int) -> None:
        self.data = data
        self.ctx = ctx
        self.count = count
        self.room = room
        self.held: Sequence[memoryview] = ()
        self.back: Sequence[tuple[memoryview, memoryview]] = ()


class Vring(Virtqueue):
    """A virtqueue that is a ring in a region.

    Buffers that lie in the region are used where they are; others are copied there and back.
    """

    def __init__(
        self,
        index: int,
        name: str,
        num: int,
        num_max: int,
        region: Region,
        bell: Bell,
        callback: Callback | None = None,
        *,
        indirect: bool = False,
        event_idx: bool = False,
        restart: Restart | None = None,
    ) -> None:
        """Make a queue on a fresh ring in the region.

        Args:
            index: on the device.
            name: for messages.
            num: size.
            num_max: largest size.
            region: where ring and buffers are.
            bell: wakes the device, and is rung by it.
            callback: see ``Virtqueue``.
            indirect: VIRTIO_F_INDIRECT_DESC was negotiated.
            event_idx: VIRTIO_F_EVENT_IDX was negotiated.
            restart: makes the ring start anew, for ``resize``; None: not supported.
        """
        self.index = index
        self.name = name
        self.num_max = num_max
        self.callback = callback
        self.memory = region.alloc(self.bytes_of(num))
        self._region = region
        self._bell = bell
        self._indirect = indirect
        self._event = event_idx
        self._restart = restart
        self._broken = False
        self._cause: BaseException | None = None
        self._stopped = False
        self._wanted = False  # the device waits for a notification that is still to come
        self._start(num)

    @staticmethod
    @abstractmethod
    def bytes_of(num: int) -> int:
        """Return how much memory a ring takes."""

    @property
    @abstractmethod
    def offsets(self) -> tuple[int, int, int]:
        """Where the three parts of the ring are in ``memory``, as the specification orders them."""

    @abstractmethod
    def _start(self, num: int) -> None:
        """Begin with an empty ring of this size in ``memory``."""

    @abstractmethod
    def _more_used(self) -> bool:
        """Return whether the device used something that was not taken."""

    @abstractmethod
    def _unused(self) -> Entry | None:
        """Take one chain out of a ring that the device does not look at any more."""

    # -- buffers ------------------------------------------------------------------------------

    def _check(self, sgs: Sequence[Buffer], out_sgs: int, in_sgs: int, data: object) -> None:
        """Raise for what cannot be added."""
        if self._broken:
            self.check_usable()
        if out_sgs + in_sgs != len(sgs) or not sgs or out_sgs < 0 or in_sgs < 0 or data is None:
            raise InvalidArgument(
                f"{len(sgs)} buffers for {out_sgs} readable and {in_sgs} writable ones; "
                "at least one, and a token, are needed"
            )

    def _full(self) -> QueueFull:
        return QueueFull(f"queue {self.name}: {self.num_free} descriptors left")

    def _place(self, sgs: Sequence[Buffer], out_sgs: int, entry: Entry) -> list[tuple[int, int]]:
        """Return offset and length of each buffer in the region; may raise MemoryError."""
        offset_of, places = self._region.offset_of, []
        held: list[memoryview] = []
        back: list[tuple[memoryview, memoryview]] = []
        for number, buffer in enumerate(sgs):
            length = len(buffer)
            offset = offset_of(buffer) if length else 0
            if offset is None:
                piece = self._region.alloc(length)
                held.append(piece)
                if number < out_sgs:
                    piece[:] = buffer
                else:
                    back.append((piece, memoryview(buffer)))
                offset = offset_of(piece)
                assert offset is not None
            else:
                held.append(buffer)  # type: ignore[arg-type]  # in the region: a view of it
            places.append((offset, length))
        entry.held, entry.back = held, back
        return places

    def _fault(self, what: str) -> None:
        self.break_(RingError(f"queue {self.name}: the device wrote {what}"))

    # -- notification -------------------------------------------------------------------------

    def notify(self) -> bool:
        """Ring the device's bell."""
        if self._broken:
            return False
        self._wanted = False
        self._bell.ring()
        return True

    def interrupt(self) -> None:
        """The device rang (Linux ``vring_interrupt``): call back, if there is something new."""
        if self.callback is not None and not self._broken and self._more_used():
            self.callback(self)

    async def wait_used(self) -> None:
        """Sleep until something is used or the queue is broken."""
        while not self._broken and not self._more_used():
            if not self.enable_cb():
                break
            await self._bell.wait()

    # -- ends ---------------------------------------------------------------------------------

    @property
    def is_broken(self) -> bool:
        """Whether the queue is broken."""
        return self._broken

    @property
    def broken_by(self) -> BaseException | None:
        """What broke the queue."""
        return self._cause

    def break_(self, cause: BaseException | None = None) -> None:
        """Refuse further work, and wake whoever sleeps."""
        if self._broken:
            return
        self._broken, self._cause = True, cause
        self._bell.wake()
        if self.callback is not None:
            self.callback(self)

    def unbreak(self) -> None:
        """Accept work again, unless the device is gone or wrote what no device writes."""
        if not self._stopped and not isinstance(self._cause, RingError):
            self._broken, self._cause = False, None

    def stop(self, cause: BaseException) -> None:
        """The device looks at the ring no more, for good: buffers may be detached."""
        self._stopped = True
        self.break_(cause)

    def detach_unused_buf(self) -> object | None:
        """Take one token back, of a broken or stopped queue."""
        if not self._broken:
            raise QueueBusy(f"queue {self.name} is live: break it or reset the device first")
        entry = self._unused()
        if entry is None:
            return None
        self._stopped = True  # the ring still names its buffer
        return entry.data

    async def resize(self, num: int, recycle: Recycle) -> None:
        """Stop the ring and start another. All that the queue held is recycled."""
        if not 0 < num <= self.num_max or not self.fits(num):
            raise InvalidArgument(f"queue size {num}: it must be one of 1 to {self.num_max}")
        if self._restart is None:
            raise NotSupported("the device cannot restart a single queue")
        if self._broken:
            raise NotPermitted(f"queue {self.name} is broken")
        self.break_(QueueBroken(f"queue {self.name} is being resized"))
        try:
            memory = await self._restart(num)
        except VofError as error:
            self._cause = error
            raise QueueBusy(f"queue {self.name} could not be started again: {error}") from error
        while (entry := self._unused()) is not None:
            recycle(self, entry.data)
        self.memory = memory
        self._start(num)
        self._broken, self._cause = False, None

    @staticmethod
    def fits(num: int) -> bool:
        """Return whether a ring can have this size."""
        return True
