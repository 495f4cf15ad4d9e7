# SPDX-License-Identifier: BSD-3-Clause
"""Where payload lives, and what orders stores to memory that others read.

A ``Pool`` gives out buffers that suit one device: heap for a socket, a shared file for a local
vring device, registered memory for RDMA. A device names its pool; whoever fills buffers for it
asks there, so that payload is received where it will be used.

``Region`` is memory that another process maps as well. ``publish``, ``observe`` and ``fence`` are
the only code that knows of memory ordering.
"""

from vof.memory.ordering import (
    fence,
    find_fence,
    observe,
    ordering,
    publish,
)
from vof.memory.pool import HEAP, Buffer, HeapPool, Pool, UserRegion, address_of
from vof.memory.region import PAGE, RESERVE, SCRATCHES, Region, whole

__all__ = [
    "HEAP",
    "PAGE",
    "RESERVE",
    "SCRATCHES",
    "Buffer",
    "HeapPool",
    "Pool",
    "Region",
    "UserRegion",
    "address_of",
    "fence",
    "find_fence",
    "observe",
    "ordering",
    "publish",
    "whole",
]
