# SPDX-License-Identifier: BSD-3-Clause
"""What a source of buffers is, and the one that is nothing special: heap."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeAlias

from vof.errors import InvalidArgument

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes. A writable buffer of a request must not be ``bytes``."""


def address_of(buffer: memoryview) -> int:
    """Return where in this process a buffer is. It must be writable and not empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class UserRegion:
    """Memory of the caller's own that a device may use where it is. See ``Pool.register``.

    A context manager, which releases it.

    Attributes:
        view: all of it, format ``B``: requests have slices of it.
        address: of the first byte, in this process.
        size: bytes.
    """

    def __init__(self, buffer: Any, release: "Callable[[UserRegion], None] | None" = None) -> None:
        """Hold a buffer.

        Args:
            buffer: see ``Pool.register``.
            release: called once, when it is released.

        Raises:
            InvalidArgument: it is read-only, empty, or not contiguous bytes.
        """
        try:
            self.view = memoryview(buffer).cast("B")
            self.address = address_of(self.view)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"no buffer to register: {error}") from None
        self.size = len(self.view)
        self._release = release

    def release(self) -> None:
        """Take it back: no peer touches it from here on. Idempotent; never suspends.

        A request that has a part of it and is not done may end its queue.
        """
        release, self._release = self._release, None
        if release is not None:
            release(self)
        self.view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


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

    def register(self, buffer: Any, *, readable: bool = True, writable: bool = True) -> UserRegion:
        """Let the device use memory of the caller's own where it is, as it does that of the pool.

        For memory that is there anyway, such as an array or a mapped file, and serves many
        requests: what is not registered is copied where the carrier needs it. Where it does not,
        this costs nothing.

        Args:
            buffer: writable contiguous bytes that have the buffer interface. It stays the caller's,
                who may not let go of it before the region is released: a bytearray or a mapped file
                refuses to be resized or closed until then.
            readable: the device may read it.
            writable: the device may write it. What it may not do is done by a copy.

        Raises:
            InvalidArgument: it is read-only, empty, not contiguous, or registered already.
            VofError: the system refuses: see ``OutOfMemory``; or the device is not connected.
        """
        return UserRegion(buffer)

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
