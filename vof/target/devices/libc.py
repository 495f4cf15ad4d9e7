# SPDX-License-Identifier: BSD-3-Clause
"""The few calls of the C library that Python's ``os`` does not have. They release the GIL."""

import ctypes
import errno
import os
import stat

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

IN_MODIFY = 0x2
IN_OPEN = 0x20
IN_ONESHOT = 0x80000000
IN_NONBLOCK = os.O_NONBLOCK
IN_CLOEXEC = os.O_CLOEXEC

MEMORY_FILE_SYSTEMS = {0x01021994, 0x858458F6}
"""tmpfs (memfd too) and ramfs."""

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, punch or zero a range, as fallocate does. May block. Raises OSError."""
    while _fallocate(fd, mode, offset, length) < 0:
        if ctypes.get_errno() != errno.EINTR:
            raise _error()


def inotify_init() -> int:
    """Return a new, non-blocking inotify descriptor. Raises OSError."""
    fd: int = _libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
    if fd < 0:
        raise _error()
    return fd


def inotify_add_watch(fd: int, path: bytes, mask: int) -> None:
    """Watch ``path``, or change what it is watched for. Raises OSError."""
    if _libc.inotify_add_watch(fd, path, mask) < 0:
        raise _error()


def in_memory(fd: int) -> bool:
    """Return whether the bytes of a regular file live in memory alone."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return False  # of a device, statfs would tell where its node is
    statfs = (ctypes.c_long * 64)()  # begins with the type of the file system
    return _libc.fstatfs(fd, statfs) == 0 and statfs[0] in MEMORY_FILE_SYSTEMS
