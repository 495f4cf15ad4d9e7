# SPDX-License-Identifier: BSD-3-Clause
"""Where payload lives.

A ``Pool`` gives out buffers that suit one device: heap for a socket, a shared file for a local
vring device, registered memory for RDMA. A device names its pool; whoever fills buffers for it
asks there, so that payload is received where it will be used.
"""

from abc import ABC, abstractmethod
from typing import TypeAlias

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
