# SPDX-License-Identifier: BSD-3-Clause
"""What the driver's side of any ring is: tokens, ends, sleeping, and buffers outside the region.

Split and packed rings differ in how a chain is written and how a used one is found; the rest is
here. Nothing that stands in shared memory is believed: which descriptors a chain has, and where it
ends, is kept here. Positions count from the ring's beginning and never wrap: a ring has their
lowest bits.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, TypeAlias

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
from vof.virtio.layout import (
    DESC_BYTES,
    MAX_CHAIN,
    VRING_DESC_F_INDIRECT,
    Bell,
)
from vof.virtio.placing import Back, Place, place
from vof.virtio.virtqueue import Callback, Recycle, Virtqueue, no_chain

Restart: TypeAlias = Callable[[int], Awaitable[memoryview]]
"""Stop the ring at its device, start one of another size, and return memory for it.

The device looks at the new ring only when it is told of a first buffer.
"""

Entry: TypeAlias = tuple[object, object, int, int, int, list[Buffer], Back]
"""A chain in the ring: token, context, descriptors it takes, writable bytes, position where it was
added, all that must live as long as the chain, and what is to be copied back."""


class Vring(Virtqueue):
    """A virtqueue that is a ring in a region.

    Buffers that lie in the region are used where they are, and may be given up by the driver at
    once. Others are copied into it and back; what the device did not write is 0 then. Empty ones
    are left out.

    Attributes:
        memory: the ring, in the region.
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
        base: int = 0,
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
            base: position of the first buffer; the device must begin there too.

        Raises:
            MemoryError: the region has no room for the ring.
            NotSupported: this machine cannot have rings.
            RingError: no ring has this size.
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
        self._stopped = False  # the device is gone
        self._lost = False  # the ring names buffers that were detached
        self._enabled = callback is not None
        self._detached: list[list[Buffer]] = []  # the device may still touch them
        self._begin(num, base)

    # -- what a layout is ---------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def bytes_of(num: int) -> int:
        """Return how much memory a ring takes."""

    @staticmethod
    @abstractmethod
    def fits(num: int) -> bool:
        """Return whether a ring can have this size, a positive number."""

    @property
    @abstractmethod
    def offsets(self) -> tuple[int, int, int]:
        """Where the three parts of the ring are in ``memory``, as the specification orders them."""

    @abstractmethod
    def _lay(self, num: int, base: int) -> None:
        """Lay an empty ring that is at a position into ``memory``, which is zeroed.

        Raises:
            RingError: no ring has this size.
            NotSupported: this machine cannot have rings.
        """

    @abstractmethod
    def _describe(self, table: memoryview, places: list[Place]) -> None:
        """Write an indirect table."""

    @abstractmethod
    def _write(self, head: int, places: list[Place]) -> None:
        """Write a chain that is not visible yet; take what it needs from the free list."""

    @abstractmethod
    def _publish(self) -> bool:
        """Make visible what was added; return whether the device wants to be told."""

    @abstractmethod
    def _look(self) -> tuple[int, int] | None:
        """Return id and length of the next used buffer, not believed, or None."""

    @property
    @abstractmethod
    def used_position(self) -> int:
        """Up to which position the device has used what was added, as the ring says, not believed.

        A device that took the place of another goes on there.
        """

    @abstractmethod
    def _took(self, count: int) -> None:
        """Go on to the next used buffer; say that it shall interrupt, if callbacks are enabled."""

    @abstractmethod
    def _free(self, head: int, count: int) -> None:
        """Put what a chain had back to the free list."""

    @abstractmethod
    def _arm(self) -> int:
        """Ask for an interrupt at the next used buffer; return its position."""

    @abstractmethod
    def _mute(self) -> None:
        """Ask for no interrupts."""

    # -- add ----------------------------------------------------------------------------------

    def _begin(self, num: int, base: int) -> None:
        self._lay(num, base)
        self._num = self._num_free = num
        self._longest = MAX_CHAIN if self._indirect else min(num, MAX_CHAIN)
        self._free_head = 0
        self._next = [*range(1, num), 0]
        self._entries: list[Entry | None] = [None] * num
        self._rest: list[int] | None = None  # of a ring that is over: heads, the oldest last
        self._tables: list[tuple[memoryview, int] | None] = [None] * num
        self._next_avail_idx = self._published = self._last_used_idx = base
        self._wanted = False  # the device waits for a notification that is still to come
        if self._enabled:
            self._arm()
        else:
            self._mute()

    @property
    def num_free(self) -> int:
        """Free descriptors."""
        return self._num_free

    def get_vring_size(self) -> int:
        """Return the size of the ring."""
        return self._num

    def add_sgs(
        self,
        sgs: Sequence[Buffer],
        out_sgs: int,
        in_sgs: int,
        data: object,
        ctx: object = None,
    ) -> None:
        """Write one chain into the ring. See ``Virtqueue``.

        Raises:
            QueueFull: also when the region has no room for copies, and this queue gives some back.
            InvalidArgument: also for a chain without a byte, and one that can never fit.
        """
        if self._broken:
            self.check_usable()
        if out_sgs + in_sgs != len(sgs) or not sgs or out_sgs < 0 or in_sgs < 0 or data is None:
            raise no_chain(sgs, out_sgs, in_sgs)
        if not all(sgs):
            out_sgs = sum(map(bool, sgs[:out_sgs]))
            sgs = [buffer for buffer in sgs if buffer]
        total = len(sgs)
        count = 1 if self._indirect and total > 1 else total
        if count > self._num_free or not 0 < total <= self._longest:
            self._refuse(total)
        head = self._free_head
        try:
            places, room, held, back = place(self._region, sgs, out_sgs)
            if count < total:
                places = [self._table(head, places)]
        except MemoryError as error:
            self._refuse_memory(error)
        self._entries[head] = data, ctx, count, room, self._next_avail_idx, held, back
        self._num_free -= count
        self._write(head, places)

    def _table(self, head: int, places: list[Place]) -> Place:
        """Describe a chain in the indirect table of an id; return where that is."""
        length = DESC_BYTES * len(places)
        found = self._tables[head]
        if found is None or len(found[0]) < length:
            table = self._region.alloc(1 << (length - 1).bit_length())
            found = self._tables[head] = table, self._region.address_of(table)
        self._describe(found[0], places)
        return found[1], length, VRING_DESC_F_INDIRECT

    def _refuse(self, total: int) -> NoReturn:
        """Say why a chain cannot be added."""
        if not total:
            raise InvalidArgument(f"queue {self.name}: a chain without a byte is no request")
        if total > self._longest:
            raise InvalidArgument(
                f"queue {self.name}: a chain of {total} buffers; it can have {self._longest}"
            )
        raise QueueFull(f"queue {self.name}: {self._num_free} descriptors left")

    def _refuse_memory(self, error: MemoryError) -> NoReturn:
        if self._num_free < self._num:
            raise QueueFull(f"queue {self.name}: {error}, until used buffers are taken") from error
        raise InvalidArgument(f"queue {self.name}: {error}, and this queue holds none") from error

    # -- notification -------------------------------------------------------------------------

    def kick_prepare(self) -> bool:
        """Publish what was added; return whether the device wants to be told."""
        if self._broken:
            return False
        if self._next_avail_idx != self._published:
            self._wanted = self._publish() or self._wanted
        return self._wanted

    def notify(self) -> bool:
        """Ring the device's bell."""
        if self._broken:
            return False
        self._wanted = False
        self._bell.ring()
        return True

    def interrupt(self) -> None:
        """The device rang (Linux ``vring_interrupt``): call back, if there is something new."""
        if (
            self.callback is not None
            and self._enabled
            and not self._broken
            and self._look() is not None
        ):
            self.callback(self)

    def enable_cb_prepare(self) -> int:
        """Ask for an interrupt at the next used buffer."""
        self._enabled = True
        return self._arm()

    def disable_cb(self) -> None:
        """Ask for no interrupts."""
        self._enabled = False
        self._mute()

    def attend(self, look: Callable[[], bool] | None) -> None:
        """Let whoever polls in this thread look at the ring."""
        self._bell.attend(look)

    async def wait_used(self) -> None:
        """Sleep until something is used or the queue is broken."""
        await self._bell.checkpoint()
        try:
            while not self._broken and self._look() is None:
                if not self.poll(self._arm()):
                    await self._bell.wait()
        finally:
            if not self._enabled:
                self._mute()

    # -- used ---------------------------------------------------------------------------------

    def get_buf_ctx(self) -> tuple[object, int, object] | None:
        """Take a used buffer. What no device writes breaks the queue, with RingError."""
        if self._broken or (used := self._look()) is None:
            return None
        head, written = used
        entry = self._entries[head] if head < self._num else None
        if entry is None or entry[4] >= self._published:
            self._fault(f"id {head} as used, which is not in flight")
            return None
        data, ctx, count, room, _, _, back = entry
        if not room:
            written = 0  # nothing is said of a chain that cannot be written (virtio 1.2, 2.8.4)
        elif written > room:
            self._fault(f"a used length of {written} for {room} writable bytes")
            return None
        self._entries[head] = None
        self._num_free += count
        self._free(head, count)
        self._took(count)
        for piece, buffer in back:
            buffer[:] = piece
        return data, written, ctx

    def _fault(self, what: str) -> None:
        self.break_(RingError(f"queue {self.name}: the device wrote {what}"))

    # -- ends ---------------------------------------------------------------------------------

    def break_(self, cause: BaseException | None = None) -> None:
        """Refuse further work, and wake whoever sleeps."""
        if self._broken:
            return
        self._broken, self._cause = True, cause
        self._bell.wake()
        if self.callback is not None:
            self.callback(self)

    def unbreak(self) -> None:
        """Accept work again, unless buffers were detached, or the device is gone or at fault."""
        if not self._stopped and not self._lost and not isinstance(self._cause, RingError):
            self._broken, self._cause, self._rest = False, None, None

    def stop(self, cause: BaseException) -> None:
        """The device looks at the ring no more, for good: it touches no buffer any more."""
        self._stopped = True
        self._detached = []
        self.break_(cause)

    def detach_unused_buf(self) -> object | None:
        """Take one token back, of a broken or stopped queue.

        As long as the device may still touch a buffer that lies in the region, nobody else gets
        that memory.
        """
        if not self._broken:
            raise QueueBusy(f"queue {self.name} is live: break it or reset the device first")
        entry = self._unused()
        if entry is None:
            return None
        if not self._stopped:
            self._lost = True
            self._detached.append(entry[5])
        return entry[0]

    def _unused(self) -> Entry | None:
        """Take one chain out of a ring that is over, in the order in which they were added."""
        if self._rest is None:
            added = [(one[4], head) for head, one in enumerate(self._entries) if one is not None]
            self._rest = [head for _, head in sorted(added, reverse=True)]
        if not self._rest:
            return None
        head = self._rest.pop()
        entry, self._entries[head] = self._entries[head], None
        assert entry is not None
        self._num_free += entry[2]
        self._free(head, entry[2])
        return entry

    async def resize(self, num: int, recycle: Recycle) -> None:
        """Stop the ring and start another. All that the queue held is recycled."""
        if not 0 < num <= self.num_max or not self.fits(num):
            raise InvalidArgument(f"queue size {num}: it must be one of 1 to {self.num_max}")
        if self._restart is None:
            raise NotSupported("the device cannot restart a single queue")
        if self._broken:
            raise NotPermitted(f"queue {self.name} is broken")
        if num == self._num:
            await self._bell.checkpoint()
            return
        self.break_(QueueBroken(f"queue {self.name} is being resized"))
        try:
            memory = await self._restart(num)
        except VofError as error:
            self._cause = error
            raise QueueBusy(f"queue {self.name} could not be started again: {error}") from error
        while (entry := self._unused()) is not None:
            recycle(self, entry[0])
        self.memory = memory
        self._begin(num, 0)
        self._broken, self._cause = False, None
