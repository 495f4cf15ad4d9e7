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
DESC_BYTES = 16
MAX_SIZE = 32768
"""Largest size of a queue (virtio 1.2, 2.7 and 2.8)."""

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
        avail: flags, idx, ring[num], used_event; 16 bits each.
        used: flags, idx; 16 bits each.
        used_ring: id, len of each element; 32 bits each.
        avail_event: 16 bits.
        offsets: of descriptor table, available ring and used ring in ``memory``.
    """

    __slots__ = ("avail", "avail_event", "desc", "num", "offsets", "used", "used_ring")

    def __init__(self, num: int, memory: memoryview) -> None:
        """Lay a ring of ``num`` into memory, aligned to 16, of at least ``bytes_of(num)``."""
        check_machine()
        if not 0 < num <= MAX_SIZE or num & (num - 1):
            raise RingError(f"a split ring of {num}: the size is a power of two up to {MAX_SIZE}")
        avail = DESC_BYTES * num
        used = -(-(avail + 6 + 2 * num) // 4) * 4
        self.num = num
        self.offsets = 0, avail, used
        self.desc = memory[:avail]
        self.avail = memory[avail : avail + 6 + 2 * num].cast("H")
        self.used = memory[used : used + 4].cast("H")
        self.used_ring = memory[used + 4 : used + 4 + 8 * num].cast("I")
        self.avail_event = memory[used + 4 + 8 * num : used + 6 + 8 * num].cast("H")

    @staticmethod
    def bytes_of(num: int) -> int:
        """Return how much memory a ring takes."""
        return -(-(DESC_BYTES * num + 6 + 2 * num) // 4) * 4 + 6 + 8 * num


class PackedLayout:
    """The three parts of a packed ring as typed views (virtio 1.2, 2.8).

    Attributes:
        num: size of the queue.
        desc: the descriptors.
        flags: the same memory by 16 bits: the flags of descriptor i are at ``8 * i + 7``.
        driver_event: off_wrap, flags; 16 bits each.
        device_event: off_wrap, flags; 16 bits each.
        offsets: of descriptors, driver and device event suppression in ``memory``.
    """

    __slots__ = ("desc", "device_event", "driver_event", "flags", "num", "offsets")

    def __init__(self, num: int, memory: memoryview) -> None:
        """Lay a ring of ``num`` into memory, aligned to 16, of at least ``bytes_of(num)``."""
        check_machine()
        if not 0 < num <= MAX_SIZE:
            raise RingError(f"a packed ring of {num}: the size is 1 to {MAX_SIZE}")
        end = DESC_BYTES * num
        self.num = num
        self.offsets = 0, end, end + 4
        self.desc = memory[:end]
        self.flags = memory[:end].cast("H")
        self.driver_event = memory[end : end + 4].cast("H")
        self.device_event = memory[end + 4 : end + 8].cast("H")

    @staticmethod
    def bytes_of(num: int) -> int:
        """Return how much memory a ring takes."""
        return DESC_BYTES * num + 8


def check_machine() -> None:
    """Refuse to run where typed views would read another byte order. Raises NotSupported."""
    if sys.byteorder != "little":
        raise NotSupported("rings in shared memory need a little-endian machine")
