# SPDX-License-Identifier: BSD-3-Clause
"""How rings lie in memory (virtio 1.2, 2.7 and 2.8): all that driver and device side share.

Everything is little endian; so is every machine that this runs on, for indices are read and written
through typed views of the memory.
"""

import struct
import sys
from collections.abc import Callable
from typing import Protocol

from vof.errors import NotSupported, RingError
from vof.memory import fence

VRING_DESC_F_NEXT = 1
VRING_DESC_F_WRITE = 2
VRING_DESC_F_INDIRECT = 4
VRING_AVAIL_F_NO_INTERRUPT = 1
VRING_USED_F_NO_NOTIFY = 1

VRING_PACKED_DESC_F_AVAIL = 1 << 7
VRING_PACKED_DESC_F_USED = 1 << 15
VRING_PACKED_EVENT_FLAG_ENABLE = 0
VRING_PACKED_EVENT_FLAG_DISABLE = 1
VRING_PACKED_EVENT_FLAG_DESC = 2
VRING_PACKED_EVENT_F_WRAP_CTR = 15

SPLIT_DESC = struct.Struct("<QIHH")
"""addr, len, flags, next."""
PACKED_DESC = struct.Struct("<QIHH")
"""addr, len, id, flags."""
PACKED_HEAD = struct.Struct("<QIH")
"""A descriptor without its flags, which are stored last."""
PACKED_USED = struct.Struct("<IH")
"""len, id: what a used descriptor has besides its flags, at ``USED_AT``."""
USED_AT = 8
DESC_BYTES = 16
MAX_SIZE = 32768
"""Largest size of a queue (virtio 1.2, 2.7 and 2.8)."""
MAX_CHAIN = 1024
"""Descriptors of one chain, at most, those of an indirect table included."""

RING_FLAGS, RING_IDX, AVAIL_RING = 0, 1, 2
"""Indexes of 16 bits in the available and the used ring of a split ring."""
EVENT_OFF_WRAP, EVENT_FLAGS = 0, 1
"""Indexes of 16 bits in an event suppression structure of a packed ring."""

Translate = Callable[[int, int], memoryview]
"""From an address in descriptors and a length to the bytes there; raises RingError."""


class Bell(Protocol):
    """How the two sides of a ring wake each other: eventfds, as a rule."""

    def ring(self) -> None:
        """Wake the other side. Never suspends."""
        ...

    def wake(self) -> None:
        """Let ``wait`` return on this side."""
        ...

    async def wait(self) -> None:
        """Suspend until the other side rang since the last ``wait``, or this side woke itself."""
        ...

    async def checkpoint(self) -> None:
        """Let other tasks run, once."""
        ...

    def attend(self, look: Callable[[], bool] | None) -> None:
        """See ``Virtqueue.attend``."""
        ...


def need_event(event: int, new: int, old: int) -> bool:
    """Return whether the other side asked to be told about a step from ``old`` to ``new``.

    All three are positions modulo 65536; ``event`` is the one it waits for (virtio 1.2, 2.7.7.2).
    """
    return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF


class SplitLayout:
    """The three parts of a split ring as typed views (virtio 1.2, 2.7).

    Attributes:
        num: size of the queue, a power of two.
        desc: the descriptor table.
        avail: flags, idx, ring[num]; 16 bits each.
        used_event: 16 bits.
        used: flags, idx; 16 bits each.
        used_ring: id, len of each element; 32 bits each.
        avail_event: 16 bits.
        offsets: of descriptor table, available ring and used ring in ``memory``.
    """

    __slots__ = (
        "avail",
        "avail_event",
        "desc",
        "num",
        "offsets",
        "used",
        "used_event",
        "used_ring",
    )

    def __init__(self, num: int, memory: memoryview) -> None:
        """Lay a ring of ``num`` into memory, aligned to 16, of at least ``bytes_of(num)``."""
        check_machine()
        if not self.fits(num):
            raise RingError(f"a split ring of {num}: the size is a power of two up to {MAX_SIZE}")
        avail = DESC_BYTES * num
        used = -(-(avail + 6 + 2 * num) // 4) * 4
        self.num = num
        self.offsets = 0, avail, used
        self.desc = memory[:avail]
        self.avail = memory[avail : avail + 4 + 2 * num].cast("H")
        self.used_event = memory[avail + 4 + 2 * num : avail + 6 + 2 * num].cast("H")
        self.used = memory[used : used + 4].cast("H")
        self.used_ring = memory[used + 4 : used + 4 + 8 * num].cast("I")
        self.avail_event = memory[used + 4 + 8 * num : used + 6 + 8 * num].cast("H")

    @staticmethod
    def fits(num: int) -> bool:
        """Return whether a ring can have this size."""
        return 0 < num <= MAX_SIZE and not num & (num - 1)

    @staticmethod
    def bytes_of(num: int) -> int:
        """Return how much memory a ring takes."""
        return -(-(DESC_BYTES * num + 6 + 2 * num) // 4) * 4 + 6 + 8 * num


def flags_at(i: int) -> int:
    """Return the index in ``PackedLayout.flags`` of the flags of descriptor ``i``."""
    return 8 * i + 7


PACKED_STATES = VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED
"""Flags of an available descriptor in an even lap round the ring, and in an odd one."""
PACKED_BOTH = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED
PACKED_USED_STATES = PACKED_BOTH, 0
"""The same two flags of a used descriptor."""


def packed_event(off_wrap: int, num: int, new: int) -> int:
    """Return the position that an event suppression structure asks for.

    Args:
        off_wrap: what the other side wrote: offset, and wrap counter in bit 15.
        num: size of the ring.
        new: where this side is: descriptors since the ring's first, which had wrap counter 1.
    """
    lap, offset = divmod(new, num)
    same_lap = off_wrap >> VRING_PACKED_EVENT_F_WRAP_CTR != lap & 1
    return new - offset + (off_wrap & 0x7FFF) - (0 if same_lap else num)


def packed_off_wrap(position: int, num: int) -> int:
    """Return a position as the event suppression structure has it."""
    lap, offset = divmod(position, num)
    return offset | (~lap & 1) << VRING_PACKED_EVENT_F_WRAP_CTR


class PackedLayout:
    """The three parts of a packed ring as typed views (virtio 1.2, 2.8).

    Attributes:
        num: size of the queue.
        desc: the descriptors.
        flags: the same memory by 16 bits, see ``flags_at``.
        driver_event: off_wrap, flags; 16 bits each.
        device_event: off_wrap, flags; 16 bits each.
        offsets: of descriptors, driver and device event suppression in ``memory``.
    """

    __slots__ = ("desc", "device_event", "driver_event", "flags", "num", "offsets")

    def __init__(self, num: int, memory: memoryview) -> None:
        """Lay a ring of ``num`` into memory, aligned to 16, of at least ``bytes_of(num)``."""
        check_machine()
        if not self.fits(num):
            raise RingError(f"a packed ring of {num}: the size is 1 to {MAX_SIZE}")
        end = DESC_BYTES * num
        self.num = num
        self.offsets = 0, end, end + 4
        self.desc = memory[:end]
        self.flags = memory[:end].cast("H")
        self.driver_event = memory[end : end + 4].cast("H")
        self.device_event = memory[end + 4 : end + 8].cast("H")

    @staticmethod
    def fits(num: int) -> bool:
        """Return whether a ring can have this size."""
        return 0 < num <= MAX_SIZE

    @staticmethod
    def bytes_of(num: int) -> int:
        """Return how much memory a ring takes."""
        return DESC_BYTES * num + 8


def check_machine() -> None:
    """Refuse to run where views would read another byte order, or stores are seen in any order.

    Raises:
        NotSupported: rings are not possible on this machine; the message says why.
    """
    if sys.byteorder != "little":
        raise NotSupported("rings in shared memory need a little-endian machine")
    fence()
