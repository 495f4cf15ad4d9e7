# SPDX-License-Identifier: BSD-3-Clause
"""What orders stores to memory that others read (ADR 15).

On x86 stores are seen in order, and so are loads; only a load may overtake a store before it, which
``fence`` prevents. On other machines ``publish`` and ``observe`` fence as well. An index is stored
through a typed view, by one aligned store.
"""

import ctypes
import platform
import threading
from collections.abc import Callable
from typing import TypeAlias

from vof.errors import NotSupported

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
