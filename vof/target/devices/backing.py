# SPDX-License-Identifier: BSD-3-Clause
"""What is behind a disk: a file, a block device, or memory that is used as a file.

One backing is opened once and shared by the models of all initiators. Everything but ``read``,
``write``, ``flush``, ``discard`` and ``write_zeroes`` belongs to the thread of the trio loop; these
five may block and may be called from any thread.
"""

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vof.errors import ConfigError
from vof.memory import Buffer
from vof.target.devices.libc import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
    in_memory,
)
from vof.target.devices.offload import Threads
from vof.target.seldom import Seldom

log = logging.getLogger(__name__)

THREADS = 16
IOV_MAX = 1024
PIECE = 1 << 20
ZEROS = memoryview(bytes(PIECE))
NEVER = -1
"""In place of flags: do not try inline."""

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE

ADVICE = {
    errno.ENOENT: "does not exist; create it, for example with truncate -s 1G",
    errno.EACCES: "permission denied; export it read-only, or change its owner or mode",
    errno.EPERM: "not permitted; export it read-only, or clear its immutable attribute",
    errno.EROFS: "is on a read-only file system; export it read-only",
    errno.EBUSY: "is in use, mounted for example; stop that use, or export it read-only",
}


class FileBacking:
    """A regular file or a block device.

    Attributes:
        path: where it is, for messages.
        read_only: nothing may write it.
        fd: the open file.
        size: in bytes, as it was at the last ``refresh``.
        limit: ``size`` in whole sectors: where a driver's disk ends.
        block_size: what the file system or device likes to write at once, in bytes.
        read_flags: for an inline preadv that does not block, or NEVER.
        write_flags: the same for pwritev.
        threads: where everything runs that blocks.
        lost: how often the system failed to put something on stable storage. It tells that to
            whoever asks first, and to nobody again, although the writes of all may be gone.
    """

    def __init__(self, path: str | os.PathLike[str], read_only: bool = False) -> None:
        """Open ``path``.

        Raises:
            ConfigError: it cannot be opened, or is neither file nor block device.
        """
        self.path = os.fspath(path)
        try:
            mode = os.stat(self.path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise ConfigError(self.path, "", "is neither a regular file nor a block device")
            flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
            if stat.S_ISBLK(mode) and not read_only:
                flags |= os.O_EXCL  # refuses one that is mounted
            fd = os.open(self.path, flags)
        except OSError as error:
            advice = ADVICE.get(error.errno or 0) or f"cannot be opened: {error.strerror}"
            raise ConfigError(self.path, "", advice) from error
        self._adopt(fd, read_only)

    def _adopt(self, fd: int, read_only: bool) -> None:
        inline_flags = 0 if in_memory(fd) else os.RWF_NOWAIT  # which tmpfs does not have
        self.fd = fd
        self.read_only = read_only
        self.size = self.limit = 0
        self.block_size = os.fstat(fd).st_blksize
        self.read_flags = inline_flags
        self.write_flags = NEVER if read_only else inline_flags
        self.threads = Threads(THREADS)
        self._subscribers: list[Callable[[], None]] = []
        self.lost = 0
        self._stabilizing = threading.Lock()
        self._seldom = Seldom(log)
        self.refresh()

    def close(self) -> None:
        """Close the file; nothing may use it any more. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # -- size ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the size again, and tell the subscribers when it changed. Never suspends."""
        size = os.lseek(self.fd, 0, os.SEEK_END)  # of a block device fstat says 0
        if size == self.size:
            return
        self.size = size
        self.limit = size & ~511
        for subscriber in tuple(self._subscribers):
            subscriber()

    def subscribe(self, subscriber: Callable[[], None]) -> None:
        """Call ``subscriber`` after each change of size. It must not raise."""
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Callable[[], None]) -> None:
        """Undo ``subscribe``."""
        self._subscribers.remove(subscriber)

    # -- what may block -----------------------------------------------------------------------

    def read(self, views: Sequence[Buffer], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError; EIO where the file ends before."""
        self._transfer(os.preadv, views, offset, 0)

    def write(self, views: Sequence[Buffer], offset: int, durable: bool = False) -> None:
        """Write ``views`` from ``offset`` on. Raises OSError; then some may be written.

        Args:
            views: what to write.
            offset: in bytes.
            durable: return only when it is on stable storage.
        """
        if durable:
            with self._stable():
                self._transfer(os.pwritev, views, offset, os.RWF_DSYNC)
        else:
            self._transfer(os.pwritev, views, offset, 0)

    def _transfer(
        self,
        call: Callable[[int, Sequence[Buffer], int, int], int],
        views: Sequence[Buffer],
        offset: int,
        flags: int,
    ) -> None:
        rest = [memoryview(view) for view in views if len(view)]
        while rest:
            done = call(self.fd, rest[:IOV_MAX], offset, flags)
            if not done:
                raise OSError(errno.EIO, "the file ends before the disk does")
            offset += done
            while rest and done >= len(rest[0]):
                done -= len(rest.pop(0))
            if done:
                rest[0] = rest[0][done:]

    def flush(self) -> None:
        """Put every completed write on stable storage. Raises OSError; see also ``lost``."""
        with self._stable():
            os.fdatasync(self.fd)

    @contextmanager
    def _stable(self) -> Iterator[None]:
        """One at a time: who asks after a failure finds it counted."""
        with self._stabilizing:
            try:
                yield
            except OSError:
                self.lost += 1
                raise

    def discard(self, offset: int, length: int) -> None:
        """Give the storage of a range back, where that is possible. Raises OSError."""
        self._allocate((PUNCH,), offset, length)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Make a range read as zeros; ``unmap``: its storage may be given back. Raises OSError."""
        if self._allocate((PUNCH, ZERO) if unmap else (ZERO,), offset, length):
            return
        end = offset + length
        while offset < end:
            piece = ZEROS[: end - offset]
            self.write((piece,), offset)
            offset += len(piece)

    def _allocate(self, modes: Sequence[int], offset: int, length: int) -> bool:
        """Try ``modes`` one after another; return whether one is supported."""
        if not length:
            return True
        for mode in modes:
            try:
                fallocate(self.fd, mode, offset, length)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
            else:
                return True
        return False

    def report(self, what: str, error: OSError) -> None:
        """Log a failure; each kind once a second. From any thread."""
        why = error.strerror or error
        self._seldom.error((what, error.errno), "%s: %s failed: %s", self.path, what, why)


class MemoryBacking(FileBacking):
    """Memory that is used as a file; its content goes with it. It never blocks."""

    def __init__(self, size: int) -> None:
        """Make ``size`` zeroed bytes; pages take memory when they are written.

        Raises:
            ConfigError: the system refuses that size.
        """
        self.path = "memory"
        fd = os.memfd_create("vof-disk", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        except (OSError, OverflowError, ValueError) as error:
            os.close(fd)
            raise ConfigError(self.path, "", f"a disk of {size} bytes: {error}") from error
        self._adopt(fd, read_only=False)
