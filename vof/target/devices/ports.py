# SPDX-License-Identifier: BSD-3-Clause
"""Where the bytes of a console come from and go to on the target's side: a socket, or a pty.

A port is opened once, before anything is served, and has one user at a time. Somebody *attaches*
to it, to read and write by hand or by program:

* What is written while nobody is attached is lost, as on a serial line with no terminal.
* Who is attached and does not read holds up the writer.
* What somebody sends waits, in the buffers of the system, until it is asked for.

Nothing here runs by itself. Cancelling a call loses no byte that was sent to us.
"""

import contextlib
import errno
import fcntl
import logging
import os
import pty
import select
import struct
import termios
import tty
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from socket import MSG_PEEK
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import notify_closing, wait_readable, wait_writable

from vof.errors import ConfigError, VofError
from vof.target.devices.libc import IN_OPEN, inotify_add_watch, inotify_init
from vof.transport.unix import bind

if TYPE_CHECKING:
    import socket

log = logging.getLogger(__name__)

IOV_MAX = 1024
MODE = 0o600
WAITING = 8
"""So many more may connect to a socket, and wait until it is their turn."""
PAUSE_S = 0.1
EVENTS = 4096
"""Bytes; an event without a name has 16."""

ADVICE = {
    errno.EADDRINUSE: "another program uses it, or it is no socket; give another path",
    errno.EEXIST: "is there, and no link to a pty; give another path",
    errno.ENOENT: "its directory does not exist; create it",
    errno.EACCES: "may not be created there; change the directory's owner or mode",
    errno.EMFILE: "too many files, or inotify instances (fs.inotify.max_user_instances)",
}


class Port(ABC):
    """One end of a line of bytes.

    Attributes:
        path: where others find it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._taken = False

    def take(self) -> None:
        """Become its user. Raises VofError while there is another."""
        if self._taken:
            raise VofError(f"{self.path} is in use: one initiator at a time can have the console")
        self._taken = True

    def release(self) -> None:
        """Undo ``take``. Whoever is attached stays so."""
        self._taken = False

    async def read(self, segments: Sequence[memoryview]) -> int:
        """Wait for bytes and put them into ``segments``; return how many, at least one. Suspends.

        ``segments`` have room. One task at a time.
        """
        spaces = [view for view in segments if len(view)][:IOV_MAX]
        while True:
            fd = await self._source()
            try:
                if count := os.readv(fd, spaces):
                    return count
                await self._left(fd)
            except BlockingIOError:
                await _until(wait_readable, fd)
            except OSError:
                await self._left(fd)

    async def write(self, segments: Sequence[memoryview]) -> None:
        """Hand over all bytes to who is attached, or to nobody. One task at a time. Suspends.

        When somebody leaves in the middle, the rest is lost.
        """
        await trio.lowlevel.checkpoint()
        begun = False
        for view in segments:
            while len(view):
                fd = self.attached()
                if fd < 0:
                    return
                try:
                    view = view[os.write(fd, view) :]
                    begun = True
                except BlockingIOError:
                    if not await _until(wait_writable, fd):
                        return
                except OSError:
                    if not self._refused() or begun:
                        return

    def write_now(self, data: bytes) -> None:
        """Hand over what fits. Never suspends."""
        if (fd := self.attached()) >= 0:
            with contextlib.suppress(OSError):
                os.write(fd, data)

    @abstractmethod
    def attached(self) -> int:
        """Return the descriptor, non-blocking, of who may be written to; -1 for nobody."""

    @abstractmethod
    async def _source(self) -> int:
        """Return a descriptor that may be read, once there is one. Suspends."""

    @abstractmethod
    async def _left(self, fd: int) -> None:
        """Nothing more comes from ``fd``: wait for somebody else. Suspends."""

    def _refused(self) -> bool:
        """Who is attached takes nothing any more: return whether somebody else may."""
        return False

    @abstractmethod
    def close(self) -> None:
        """Close it, and leave no file. Idempotent."""


async def _until(wait: Callable[[int], Awaitable[None]], fd: int) -> bool:
    """Wait for a descriptor; return False where it is closed, or all is to be looked at again."""
    try:
        await wait(fd)
    except trio.ClosedResourceError:
        return False
    return True


class SocketPort(Port):
    """A listening unix stream socket. One is attached; others wait until that one leaves.

    Who ends sending, leaves. What one who left had sent before is read, then it is another's turn.
    """

    def __init__(self, path: str) -> None:
        """Listen on ``path``; only this user may connect. A file that nobody listens on goes.

        Raises:
            ConfigError: that is not possible.
        """
        super().__init__(path)
        self._client: socket.socket | None = None
        self._deaf = False
        try:
            self._listener = bind(path, MODE)
        except OSError as error:
            raise _wrong(path, error) from error
        self._identity = _identity(path)
        self._listener.setblocking(False)
        self._listener.listen(WAITING)

    def attached(self) -> int:
        """Whoever is connected and may listen."""
        return -1 if self._deaf else self._current()

    def _current(self) -> int:
        """Whoever is connected; if nobody is, who waits first."""
        if self._client is None:
            try:
                self._client = self._listener.accept()[0]
            except OSError:
                return -1
            self._client.setblocking(False)
            notify_closing(self._listener)  # who waits for somebody to come looks again
        return self._client.fileno()

    async def _source(self) -> int:
        await trio.lowlevel.checkpoint()
        while (fd := self._current()) < 0:
            await _until(wait_readable, self._listener.fileno())
            if self._current() < 0:
                await trio.sleep(PAUSE_S)  # it cannot be accepted: too many open files
        return fd

    async def _left(self, fd: int) -> None:
        self._drop()

    def _refused(self) -> bool:
        with contextlib.suppress(OSError):
            self._deaf = bool(self._client and self._client.recv(1, MSG_PEEK))
        if not self._deaf:
            self._drop()
        return not self._deaf

    def _drop(self) -> None:
        if self._client is not None:
            notify_closing(self._client)
            self._client.close()
            self._client = None
            self._deaf = False

    def close(self) -> None:
        """Close all, and remove the file, if it is still ours."""
        if self._listener.fileno() >= 0:
            self._listener.close()
            if self._client is not None:
                self._client.close()
            with contextlib.suppress(OSError):
                if _identity(self.path) == self._identity:
                    os.unlink(self.path)


class PtyPort(Port):
    """A pseudo-terminal, raw; ``path`` is a link to the end that others open.

    The system keeps some KiB that somebody did not read for who opens it next.
    """

    def __init__(self, path: str, cols: int = 0, rows: int = 0) -> None:
        """Open a pty and link ``path`` to it; a link to an earlier one goes.

        Args:
            path: of the link.
            cols: width of the terminal, in characters; 0 leaves it open.
            rows: its height.

        Raises:
            ConfigError: that is not possible.
        """
        super().__init__(path)
        self._fd = self._inotify = -1
        try:
            self._fd, slave = pty.openpty()
            try:
                tty.setraw(slave)
                os.fchmod(slave, MODE)
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
                self.device = os.ttyname(slave)
            finally:
                os.close(slave)  # so that the system tells when others have it open
            os.set_blocking(self._fd, False)
            self._inotify = inotify_init()
            inotify_add_watch(self._inotify, self.device.encode(), IN_OPEN)
            if _is_pty(path):
                os.unlink(path)
            os.symlink(self.device, path)
        except OSError as error:
            self._close()
            raise _wrong(path, error) from error
        self._poll = select.poll()
        self._poll.register(self._fd, 0)
        log.info("%s is %s", path, self.device)

    def attached(self) -> int:
        """Ourselves, while anybody has the other end open."""
        return -1 if self._poll.poll(0) else self._fd

    async def _source(self) -> int:
        await trio.lowlevel.checkpoint()
        return self._fd

    async def _left(self, fd: int) -> None:
        """Wait until somebody opens the other end, or did so since this was asked last."""
        await wait_readable(self._inotify)
        os.read(self._inotify, EVENTS)

    def close(self) -> None:
        """Close all, and remove the link, if it is still ours."""
        if self._fd >= 0:
            self._close()
            with contextlib.suppress(OSError):
                if os.readlink(self.path) == self.device:
                    os.unlink(self.path)

    def _close(self) -> None:
        for fd in (self._fd, self._inotify):
            if fd >= 0:
                os.close(fd)
        self._fd = self._inotify = -1


def _is_pty(path: str) -> bool:
    """Whether there is a link to a pty, also to one that is gone."""
    return os.path.islink(path) and os.readlink(path).startswith("/dev/pts/")


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _wrong(path: str, error: OSError) -> ConfigError:
    advice = ADVICE.get(error.errno or 0) or f"cannot be created: {error.strerror or error}"
    return ConfigError(path, "", advice)


def probe(path: str) -> None:
    """See whether a port could be made there, and change nothing. Raises ConfigError."""
    directory = os.path.dirname(path) or "."
    if not os.access(directory, os.W_OK | os.X_OK):
        missing = errno.EACCES if os.path.isdir(directory) else errno.ENOENT
        raise ConfigError(path, "", ADVICE[missing])
