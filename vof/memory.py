# SPDX-License-Identifier: BSD-3-Clause
"""Where payload lives, and what orders stores to memory that others read.

A ``Pool`` gives out buffers that suit one device: heap for a socket, a shared file for a local
vring device, registered memory for RDMA. A device names its pool; whoever fills buffers for it
asks there, so that payload is received where it will be used.

``Region`` is memory that another process maps as well. ``publish``, ``observe`` and ``fence`` are
the only code that knows of memory ordering (ADR 15). On x86 stores are seen in order, and so are
loads; only a load may overtake a store before it, which ``fence`` prevents. On other machines
``publish`` and ``observe`` fence as well. An index is stored through a typed view, by one aligned
store.
"""

import ctypes
import fcntl
import functools
import mmap
import os
import platform
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from vof.errors import InvalidArgument, NotSupported

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes. A writable buffer of a request must not be ``bytes``."""


class Pool(ABC):
    """A source of buffers. Never suspends."""

    @abstractmethod
    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes, format ``B``.

        The memory goes back to the pool when the last view of it is gone.
        """

    def scratch(self, size: int) -> memoryview:
        """Return ``size`` bytes to receive small payload into, together with what is not payload.

        Heap, unless the pool has so much that it may as well lie where it is used.
        """
        return memoryview(bytearray(size))


class HeapPool(Pool):
    """Buffers in this process's heap: for every device behind a socket."""

    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes of heap."""
        return memoryview(bytearray(size))


HEAP = HeapPool()


# -- ordering -----------------------------------------------------------------------------------

STRONG = frozenset({"x86_64", "AMD64", "i686", "i386"})
"""Machines on which stores are seen in the order in which they were made, and loads likewise."""
_SEQ_CST = 5

Fence: TypeAlias = Callable[[], object]
Publish: TypeAlias = Callable[[memoryview, int, int], None]
Observe: TypeAlias = Callable[[memoryview, int], int]


def find_fence(library: str = "libatomic.so.1") -> Fence | None:
    """Return the full fence of a C library, or None: it is not there."""
    try:
        function = ctypes.PyDLL(library).atomic_thread_fence
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_int,), None
    order = ctypes.c_int(_SEQ_CST)

    def fence() -> None:
        function(order)

    return fence


def ordering(machine: str, fence: Fence | None) -> tuple[Fence, Publish, Observe]:
    """Return what orders memory on a machine: ``fence``, ``publish`` and ``observe``.

    Args:
        machine: as ``platform.machine`` names it.
        fence: a full fence, if there is a proven one.
    """
    strong = machine in STRONG
    if fence is None:
        fence = _locked if strong else _refuse
    full = fence

    def publish(view: memoryview, index: int, value: int) -> None:
        full()
        view[index] = value

    def observe(view: memoryview, index: int) -> int:
        value: int = view[index]
        full()
        return value

    return (full, _store, _load) if strong else (full, publish, observe)


def _store(view: memoryview, index: int, value: int) -> None:
    view[index] = value


def _load(view: memoryview, index: int) -> int:
    value: int = view[index]
    return value


_lock = threading.Lock()


def _locked() -> None:
    """Execute a locked instruction, which is a full fence on x86."""
    with _lock:
        pass


def _refuse() -> None:
    raise NotSupported("rings in shared memory need libatomic on this machine: install it")


fence, publish, observe = ordering(platform.machine(), find_fence())
"""``fence()``: no load after it is made before the stores before it are seen.

``publish(view, index, value)``: store so that whoever sees the value sees all that was stored
before. ``observe(view, index)``: load what ``publish`` stored; what was stored before it is seen
from here on. ``view`` is of shared memory, cast to the width of the value and aligned to it.

All raise NotSupported on a machine that needs a fence and has none; ``fence()`` finds out.
"""


# -- shared memory ------------------------------------------------------------------------------

PAGE = mmap.PAGESIZE
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
LEAST = 6
"""Pieces have 2 ** order bytes and begin at a multiple of that; this is the smallest order."""


SCRATCHES = 64
"""Scratch buffers are of the region where it could hold so many."""


@functools.cache
def _piece(order: int) -> Any:
    """Return the type of pieces of an order: memory that says so when its last view is gone."""

    def end(piece: Any) -> None:
        piece.free.append(piece.offset)

    return type(f"Piece{order}", (ctypes.c_char * (1 << order),), {"__del__": end})


def address_of(buffer: memoryview) -> int:
    """Return where in this process a buffer is. It must be writable and not empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Region(Pool):
    """Memory in a file of its own, which others map by its descriptor; a pool of pieces of it.

    It can neither shrink nor grow: whoever shrank it would end this process. ``alloc`` is called
    from one thread at a time; views may end in any.

    Attributes:
        fd: descriptor of the file (memfd), owned by the region; -1 when closed.
        size: bytes, whole pages.
        view: all of it, format ``B``.
        address: of the first byte, in this process.
    """

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
        self._free: list[list[int]] = [[] for _ in range(self.size.bit_length())]
        offset = 0
        for order in reversed(range(len(self._free))):
            if self.size >> order & 1:
                self._free[order].append(offset)
                offset += 1 << order

    @property
    def used(self) -> int:
        """Bytes given out, as pieces of whole size."""
        return self.size - sum(len(free) << order for order, free in enumerate(self._free))

    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes of the region. See ``Pool``.

        Raises:
            MemoryError: the region has no piece of this size left; some may come back.
        """
        if not size:
            return self.view[:0]
        order = max(LEAST, (size - 1).bit_length())
        offset = self._take(order)
        if offset is None:
            self._join()
            offset = self._take(order)
        if offset is None:
            raise MemoryError(f"no {size} bytes left of {self.size} in shared memory")
        piece = _piece(order).from_buffer(self._map, offset)
        piece.free, piece.offset = self._free[order], offset
        view = memoryview(piece).cast("B")[:size]
        view[:] = bytes(size)
        return view

    def scratch(self, size: int) -> memoryview:
        """Return bytes of the region, if that is large. See ``Pool``."""
        try:
            if size <= self.size // SCRATCHES:
                return self.alloc(size)
        except MemoryError:
            pass
        return super().scratch(size)

    def _take(self, order: int) -> int | None:
        """Take a free piece, cutting a larger one if need be."""
        for larger in range(order, len(self._free)):
            if self._free[larger]:
                offset = self._free[larger].pop()
                for half in reversed(range(order, larger)):
                    self._free[half].append(offset + (1 << half))
                return offset
        return None

    def _join(self) -> None:
        """Join free halves to whole pieces. More may become free meanwhile."""
        for order in range(LEAST, len(self._free) - 1):
            free, loose = self._free[order], set()
            while free:
                loose.add(free.pop())
            step = 1 << order
            whole = {offset for offset in loose if not offset & step and offset + step in loose}
            free += loose - whole - {offset + step for offset in whole}
            self._free[order + 1] += whole

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
