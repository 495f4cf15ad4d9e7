# SPDX-License-Identifier: BSD-3-Clause
"""``Region``: memory that another process maps as well, as a pool of pieces."""

import ctypes
import fcntl
import functools
import mmap
import os
from collections.abc import Callable, Iterator
from typing import Any

from vof.errors import InvalidArgument
from vof.memory.pool import Buffer, Pool, address_of

PAGE = mmap.PAGESIZE
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
LEAST = 64
"""Pieces begin at multiples of this, and have a multiple of it."""
SCRATCHES = 64
"""Scratch buffers are of the region where it could hold so many."""
RESERVE = 8
"""One in so many bytes is not for requests: rings, and what they copy, find room there."""


def whole(size: int) -> int:
    """Return how much a piece of ``size`` bytes takes: up to an eighth more.

    So there are few sizes, and what came back is soon used again.
    """
    step = max(LEAST, 1 << (size - 1).bit_length() >> 4)
    return -(-size // step) * step


@functools.cache
def _piece(size: int) -> Any:
    """Return the type of pieces of a size: memory that says so when its last view is gone."""

    def end(piece: Any) -> None:
        piece.free.append(piece.offset)
        piece.line.ended(piece.offset)

    return type(f"Piece{size}", (ctypes.c_char * size,), {"__del__": end})


class _Line:
    """Who waits for memory, and what it is waited for. Pieces know it, in whatever thread they end.

    Attributes:
        claims: offsets of pieces that were claimed and did not end.
        waiting: whom to wake, in order.
    """

    def __init__(self) -> None:
        self.claims: set[int] = set()
        self.waiting: dict[Callable[[], None], None] = {}

    def ended(self, offset: int) -> None:
        """A piece came back."""
        self.claims.discard(offset)
        if self.waiting:
            self.wake()

    def wake(self) -> None:
        """Wake the first."""
        for wake in list(self.waiting)[:1]:
            wake()


class Region(Pool):
    """Memory in a file of its own, which others map by its descriptor; a pool of pieces of it.

    It can neither shrink nor grow: whoever shrank it would end this process. All calls are made
    from one thread at a time; views may end in any.

    What is claimed is taken from the front, all else from the back.

    Attributes:
        fd: descriptor of the file (memfd), owned by the region; -1 when closed.
        size: bytes, whole pages.
        view: all of it, format ``B``.
        address: of the first byte, in this process.
    """

    heap = False
    fd = -1

    def __init__(self, size: int) -> None:
        """Make a region of at least ``size`` bytes. Raises OSError."""
        self.size = -(-size // PAGE) * PAGE
        self.fd = os.memfd_create("vof", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)
            self._map = mmap.mmap(self.fd, self.size)
        except BaseException:
            self.close()
            raise
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._holes = [(0, self.size)]  # offset and size of what was never given out since a join
        self._free: dict[int, list[int]] = {}  # offsets of pieces that came back, by size
        self._line = _Line()
        self._holders: dict[Callable[[], None], None] = {}

    # -- pieces -------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes given out, as whole pieces."""
        back = sum(size * len(free) for size, free in self._free.items())
        return self.size - back - sum(size for _, size in self._holes)

    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes of the region. See ``Pool``.

        Raises:
            MemoryError: the region has no piece of this size left; some may come back.
        """
        return self._give(size, -1)[0]

    def claim(self, size: int) -> memoryview:
        """Return bytes of the region for what a request carries. See ``Pool``."""
        if self.used + whole(size) > self.size - self.size // RESERVE:
            raise self._spent(size)
        if self.contended:
            self._join()  # whoever waits for much needs it in one piece
        view, offset = self._give(size, 0)
        self._line.claims.add(offset)
        return view

    def scratch(self, size: int) -> memoryview | None:
        """Return bytes of the region, if it is large and half of it is free. See ``Pool``."""
        if size > self.size // SCRATCHES or self.contended or 2 * self.used > self.size:
            return None
        try:
            return self.claim(size)
        except MemoryError:
            return None

    def _spent(self, size: int) -> MemoryError:
        return MemoryError(f"no {size} bytes left of {self.size} in shared memory")

    def _give(self, size: int, end: int) -> tuple[memoryview, int]:
        """Return a new piece, and where it is.

        Args:
            size: of the view.
            end: of the region, where to look for room: 0 is the front, -1 the back.
        """
        if not size:
            return self.view[:0], 0
        room = whole(size)
        offset = self._take(room, end)
        if offset is None:
            self._join()
            offset = self._take(room, end)
        if offset is None:
            raise self._spent(size)
        piece = _piece(room).from_buffer(self._map, offset)
        piece.free, piece.offset = self._free.setdefault(room, []), offset
        piece.line = self._line
        view = memoryview(piece).cast("B")[:size]
        view[:] = bytes(size)
        return view, offset

    def _take(self, room: int, end: int) -> int | None:
        """Take what came back from another of its size, or cut it off a hole."""
        if free := self._free.get(room):
            return free.pop()
        holes = self._holes
        for number, (offset, size) in enumerate(holes) if not end else _backwards(holes):
            if size >= room:
                rest = size - room
                if not rest:
                    del holes[number]
                elif end:
                    holes[number] = offset, rest
                    offset += rest
                else:
                    holes[number] = offset + room, rest
                return offset
        return None

    def _join(self) -> None:
        """Make holes of all that came back. More may come back meanwhile."""
        loose = self._holes
        for size, free in self._free.items():
            while free:
                loose.append((free.pop(), size))
        holes: list[tuple[int, int]] = []
        end = -1
        for offset, size in sorted(loose):
            if offset == end:
                holes[-1] = holes[-1][0], holes[-1][1] + size
            else:
                holes.append((offset, size))
            end = offset + size
        self._holes = holes

    # -- the line -----------------------------------------------------------------------------

    @property
    def contended(self) -> bool:
        """Whether somebody waits."""
        return bool(self._line.waiting)

    @property
    def idle(self) -> bool:
        """Whether nothing is claimed."""
        return not self._line.claims

    def enter(self, let_go: Callable[[], None]) -> None:
        """See ``Pool``."""
        self._holders[let_go] = None

    def leave(self, let_go: Callable[[], None]) -> None:
        """See ``Pool``."""
        self._holders.pop(let_go, None)

    def wait(self, wake: Callable[[], None]) -> None:
        """See ``Pool``."""
        self._line.waiting[wake] = None
        for let_go in list(self._holders):
            let_go()

    def first(self, wake: Callable[[], None]) -> bool:
        """See ``Pool``."""
        return list(self._line.waiting)[:1] == [wake]

    def forget(self, wake: Callable[[], None]) -> None:
        """See ``Pool``."""
        if self.first(wake):
            del self._line.waiting[wake]
            self._line.wake()
        else:
            self._line.waiting.pop(wake, None)

    # -- places -------------------------------------------------------------------------------

    def offset_of(self, buffer: Buffer) -> int | None:
        """Return where in the region a buffer begins, or None: it is not there.

        Args:
            buffer: not empty. A view that is read-only counts as not there.
        """
        if type(buffer) is not memoryview or buffer.readonly:
            return None
        offset = address_of(buffer) - self.address
        return offset if 0 <= offset <= self.size - len(buffer) else None

    def address_of(self, piece: memoryview) -> int:
        """Return the address of a piece that the region gave out."""
        return address_of(piece)

    def slice(self, offset: int, length: int) -> memoryview:
        """Return bytes by their place. Raises InvalidArgument when they are not all inside."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InvalidArgument(f"{length} bytes at {offset} of a region of {self.size}")
        return self.view[offset : offset + length]

    def close(self) -> None:
        """Close the file. The memory itself goes when the last view of it does. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    __del__ = close


def _backwards(holes: list[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, int]]]:
    return zip(reversed(range(len(holes))), reversed(holes), strict=True)
