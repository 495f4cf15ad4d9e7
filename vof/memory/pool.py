# SPDX-License-Identifier: BSD-3-Clause
"""What a source of buffers is, and the one that is nothing special: heap."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes. A writable buffer of a request must not be ``bytes``."""


def address_of(buffer: memoryview) -> int:
    """Return where in this process a buffer is. It must be writable and not empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Pool(ABC):
    """A source of buffers. Never suspends.

    Who needs memory for a request and finds none waits in line: whoever holds what it can do
    without lets go of it, and memory that comes back is for the first in line alone.

    Attributes:
        heap: any memory of this process does as well for its device, and there is no end of it.
        size: bytes that it has in all.
    """

    heap = True
    size = 1 << 62

    @abstractmethod
    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes, format ``B``.

        The memory goes back to the pool when the last view of it is gone.
        """

    def claim(self, size: int) -> memoryview:
        """Do as ``alloc``, for what a request carries: something is left for what else there is.

        Raises:
            MemoryError: there is no such piece now: let go of what is held, and ``wait``.
        """
        return self.alloc(size)

    def scratch(self, size: int) -> memoryview | None:
        """Return bytes to receive small payload into, together with what is not payload.

        None: take heap, and copy payload from there.
        """
        return None

    @property
    def contended(self) -> bool:
        """Whether somebody waits in line."""
        return False

    @property
    def idle(self) -> bool:
        """Whether nothing is claimed: what does not fit now never will."""
        return True

    def enter(self, let_go: Callable[[], None]) -> None:  # noqa: B027 - nobody waits for heap
        """Have ``let_go`` called when somebody begins to wait, until ``leave``."""

    def leave(self, let_go: Callable[[], None]) -> None:  # noqa: B027
        """Have it called no more. Idempotent."""

    def wait(self, wake: Callable[[], None]) -> None:  # noqa: B027
        """Stand in line until ``forget``; at once, all who can let go of memory.

        Args:
            wake: called whenever memory came back while it is the first in line. In any thread,
                at any time, also by the garbage collector: it must do no more than wake.
        """

    def first(self, wake: Callable[[], None]) -> bool:
        """Return whether it is this one's turn."""
        return True

    def forget(self, wake: Callable[[], None]) -> None:  # noqa: B027
        """Leave the line; the next is woken. Idempotent."""


class HeapPool(Pool):
    """Buffers in this process's heap: for every device behind a socket."""

    def alloc(self, size: int) -> memoryview:
        """Return ``size`` zeroed bytes of heap."""
        return memoryview(bytearray(size))


HEAP = HeapPool()
