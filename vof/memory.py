# SPDX-License-Identifier: BSD-3-Clause
"""Where payload lives, and what orders stores to memory that others read.

A ``Pool`` gives out buffers that suit one device: heap for a socket, a shared file for a local
vring device, registered memory for RDMA. A device names its pool; whoever fills buffers for it
asks there, so that payload is received where it will be used.

``Region`` is memory that another process maps as well. ``publish``, ``observe`` and ``fence`` are
the only code that knows of memory ordering. On x86 stores are seen in order, and so are loads; only
a load may overtake a store before it, which ``fence`` prevents. On other machines ``publish`` and
``observe`` fence as well. An index is stored through a typed view, by one aligned store.
"""

import ctypes
import fcntl
import mmap
import os
import platform
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

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


class HeapPool(Pool):
    """Buffers in this process's heap: for every device behind a socket."""

    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes of heap."""
        return memoryview(bytearray(size))


HEAP = HeapPool()


# -- ordering -----------------------------------------------------------------------------------

STRONG = platform.machine() in ("x86_64", "AMD64", "i686", "i386")
"""Whether stores are seen in the order in which they were made, and loads are made in order."""
_SEQ_CST = 5


def _find_fence() -> Callable[[], object] | None:
    """Return a full fence, or None where there is no proven one."""
    try:
        function = ctypes.CDLL("libatomic.so.1").atomic_thread_fence
    except (OSError, AttributeError):
        if not STRONG:
            return None
        lock = threading.Lock()  # a locked instruction, which is a full fence on x86

        def locked() -> None:
            with lock:
                pass

        return locked
    function.argtypes, function.restype = (ctypes.c_int,), None
    order = ctypes.c_int(_SEQ_CST)

    def fence() -> None:
        function(order)

    return fence


_fence = _find_fence()


def fence() -> None:
    """No load after this is made before the stores before it are seen.

    Raises:
        NotSupported: this machine needs libatomic for it, and has none.
    """
    if _fence is None:
        raise NotSupported("rings in shared memory need libatomic on this machine: install it")
    _fence()


def publish(view: memoryview, index: int, value: int) -> None:
    """Store ``value`` so that whoever sees it sees all that was stored before.

    Args:
        view: of shared memory, cast to the width of the value, aligned to it.
        index: in ``view``.
        value: to store.
    """
    if not STRONG:
        fence()
    view[index] = value


def observe(view: memoryview, index: int) -> int:
    """Load a value that ``publish`` stored: what was stored before it is seen from here on."""
    value: int = view[index]
    if not STRONG:
        fence()
    return value


# -- shared memory ------------------------------------------------------------------------------

PAGE = mmap.PAGESIZE
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
LEAST = 64
"""Smallest piece that a region gives out, in bytes; all are powers of two times this."""


class Region(Pool):
    """Memory in a file of its own, which others map by its descriptor; a pool of pieces of it.

    Attributes:
        fd: descriptor of the file (memfd), owned by the region.
        size: bytes, whole pages.
        view: all of it, format ``B``.
        address: of the first byte, in this process.
        used: bytes given out, as pieces of whole size.
    """

    def __init__(self, size: int) -> None:
        """Make a region of at least ``size`` bytes. Raises OSError."""
        self.size = -(-size // PAGE) * PAGE
        self.fd = os.memfd_create("vof", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS)  # who shrinks it would end this process
            self._map = mmap.mmap(self.fd, self.size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.used = 0
        self._top = 0
        self._free: dict[int, list[int]] = {}

    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes of the region. See ``Pool``.

        Raises:
            MemoryError: the region has no piece of this size left; some may come back.
        """
        whole = LEAST
        while whole < size:
            whole *= 2
        free = self._free.get(whole)
        if free:
            offset = free.pop()
        elif self._top + whole <= self.size:
            offset = self._top
            self._top += whole
        else:
            raise MemoryError(f"no {whole} bytes left of {self.size} in shared memory")
        piece = (ctypes.c_char * size).from_buffer(self._map, offset) if size else None
        if piece is None:
            self._back(offset, whole)
            return self.view[offset:offset]
        self.used += whole
        weakref.finalize(piece, self._release, offset, whole).atexit = False
        view = memoryview(piece).cast("B")
        view[:] = bytes(size)
        return view

    def _release(self, offset: int, whole: int) -> None:
        self.used -= whole
        self._back(offset, whole)

    def _back(self, offset: int, whole: int) -> None:
        self._free.setdefault(whole, []).append(offset)

    def offset_of(self, buffer: Buffer) -> int | None:
        """Return where in the region a buffer begins, or None: it is not there."""
        if type(buffer) is not memoryview or buffer.readonly:
            return None
        offset = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) - self.address
        return offset if 0 <= offset <= self.size - len(buffer) else None

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
